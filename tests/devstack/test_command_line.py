"""``python -m devstack`` as a shell sees it; Redis alone is started, which takes no time."""

import os
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator

import pytest

from devstack import wait_until
from devstack.procinfo import identify
from devstack.stack import REDIS, Stack

TIMEOUT = 20.0
GIVEN = {"DATABASE_URL": "postgres://u:it's@elsewhere/x", "KAFKA_BOOTSTRAP_SERVERS": "elsewhere:9092"}
NAME = f"tests-{os.getpid()}"
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name != "REDIS_URL"},
    "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    "DEVSTACK_NAME": NAME,
    **GIVEN,
}


@pytest.fixture(autouse=True)
def stack() -> Iterator[Stack]:
    """Give the stack that the commands work on; its files go at the end, the lock's too."""
    stack = Stack(NAME, environ=GIVEN)
    yield stack
    stack.down(wipe=True)
    (stack.folder / "state.json").unlink()
    stack.folder.rmdir()
    (stack.folder.parent / f"{NAME}.lock").unlink()


def devstack(*arguments: str, without: Collection[str] = (), **wishes: str) -> subprocess.CompletedProcess[str]:
    """Run a command; ``without`` names variables that it does not get, ``wishes`` are some that it gets besides."""
    environment = {name: value for name, value in ENVIRONMENT.items() if name not in without}
    return subprocess.run(
        [sys.executable, "-m", "devstack", *arguments],
        env={**environment, **wishes},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


def started(*arguments: str) -> "subprocess.Popen[str]":
    """Start a command whose standard input stays open until the test lets go of it."""
    return subprocess.Popen(
        [sys.executable, "-m", "devstack", *arguments],
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def condition(stack: Stack) -> str:
    return next(part.condition for part in stack.status() if part.name == REDIS)


def test_up_prints_what_a_shell_can_evaluate(stack: Stack) -> None:
    result = devstack("up")
    assert result.returncode == 0
    assert len(result.stdout.splitlines()) == 3
    script = f'{result.stdout}\nprintf "%s\\n" "$DATABASE_URL" "$REDIS_URL" "$KAFKA_BOOTSTRAP_SERVERS"'
    evaluated = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert evaluated.stdout.splitlines() == [
        GIVEN["DATABASE_URL"],
        f"redis://127.0.0.1:{stack.part(REDIS).port}/0",
        GIVEN["KAFKA_BOOTSTRAP_SERVERS"],
    ]
    assert devstack("status").returncode == 0
    assert "Ready to accept connections" in devstack("logs", "redis").stdout
    assert devstack("down").returncode == 0
    assert devstack("status").returncode == 1


def test_two_at_once_start_one(stack: Stack) -> None:
    with started("up") as one, started("up") as two:
        assert one.communicate(timeout=TIMEOUT)[0] == two.communicate(timeout=TIMEOUT)[0]
    log = stack.log_paths()[REDIS].read_text()
    assert log.count("Ready to accept connections") == 1


def test_run_passes_addresses_and_exit_code_and_ends_what_it_started(stack: Stack) -> None:
    result = devstack("run", "--fresh", "--", "sh", "-c", "echo $REDIS_URL; exit 7")
    assert result.returncode == 7
    assert result.stdout.startswith("redis://127.0.0.1:")
    assert condition(stack) == "stopped"


def test_run_leaves_a_stack_up_that_was_up(stack: Stack) -> None:
    stack.up()
    assert devstack("run", "--", "true").returncode == 0
    assert condition(stack) == "running"
    refused = devstack("run", "--fresh", "--", "true")
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].startswith(f"devstack: stack '{NAME}' is up")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_run_passes_signals_on(stack: Stack, number: signal.Signals) -> None:
    source = f"import signal; print('ready', flush=True); signal.sigwait([{int(number)}]); raise SystemExit(9)"
    source = f"import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [{int(number)}]); {source}"
    with started("run", "--", sys.executable, "-c", source) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
        run.send_signal(number)
        assert run.wait(TIMEOUT) == 9
    assert condition(stack) == "stopped"


def test_the_next_run_clears_up_after_a_killed_one(stack: Stack) -> None:
    with started("run", "--", "sh", "-c", "echo $$; read word") as run:
        assert run.stdout is not None
        command = int(run.stdout.readline())
        run.kill()
        run.wait(TIMEOUT)
        os.kill(command, signal.SIGKILL)
    wait_until(lambda: identify(command) is None, TIMEOUT, "the command goes on")
    assert condition(stack) == "running"
    assert devstack("run", "--fresh", "--", "true").returncode == 0
    assert condition(stack) == "stopped"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "--", "no-such-program"), "no such program"),
        (("run",), "no command"),
        (("up", "--name", "../x"), "cannot name a stack"),
        (("up", "--brokers", "0"), "1 to 9 brokers"),
        (("logs", "mysql"), "choose one of"),
    ],
)
def test_mistakes_get_one_line(stack: Stack, arguments: tuple[str, ...], message: str) -> None:
    result = devstack(*arguments)
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    assert message in result.stderr


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"DEVSTACK_BROKERS": "three"}, "DEVSTACK_BROKERS is 'three': set it to the number of brokers, 1 to 9"),
        ({"DEVSTACK_BROKERS": "10"}, "DEVSTACK_BROKERS is '10'"),
        ({"DEVSTACK_KAFKA_PORTS": "9092;"}, "DEVSTACK_KAFKA_PORTS is '9092;': list different ports"),
        ({"DEVSTACK_KAFKA_PORTS": "80"}, "from 1024 to 65535"),
        ({"DEVSTACK_BROKERS": "2", "DEVSTACK_KAFKA_PORTS": "9092,9092"}, "list different ports"),
        ({"DEVSTACK_BROKERS": "2", "DEVSTACK_KAFKA_PORTS": "9092"}, "has 1 port(s) and the stack 2 broker(s)"),
    ],
)
def test_bad_wishes_for_brokers_get_one_line(stack: Stack, wishes: dict[str, str], message: str) -> None:
    result = devstack("up", without=["KAFKA_BOOTSTRAP_SERVERS"], **wishes)
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    assert message in result.stderr


def test_wishes_for_brokers_do_not_concern_a_kafka_that_is_given(stack: Stack) -> None:
    assert devstack("up", DEVSTACK_BROKERS="3", DEVSTACK_KAFKA_PORTS="9092").returncode == 0


def test_status_names_the_given_services() -> None:
    lines = devstack("status").stdout.splitlines()
    assert lines[0].split() == ["postgres", "external", "named", "by", "DATABASE_URL"]
