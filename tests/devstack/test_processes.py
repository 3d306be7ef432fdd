"""What ManagedProcess promises about ends: its own, its workers' and its starter's."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from devstack import ManagedProcess, wait_until
from devstack.procinfo import identify, is_alive

TIMEOUT = 10.0
# A program with a worker in its group; both say their pid. The worker ignores SIGTERM, as a stuck one does.
WITH_WORKER = """
import os, signal
worker = os.fork()
if worker == 0:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("worker", os.getpid(), flush=True)
    while True:
        signal.pause()
print("leader", os.getpid(), flush=True)
signal.pause()
"""
STUBBORN = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
while True:
    signal.pause()
"""


def program(source: str, log_path: Path) -> ManagedProcess:
    return ManagedProcess("program", [sys.executable, "-c", source], None, None, log_path)


def wait_for_line(process: ManagedProcess, beginning: str) -> str:
    def line() -> str | None:
        lines = process.log_tail().splitlines()
        return next((line for line in reversed(lines) if line.startswith(beginning)), None)

    wait_until(line, TIMEOUT, f"no line {beginning!r} in the log")
    found = line()
    assert found is not None
    return found


def has_ended(pid: int) -> Callable[[], bool]:
    return lambda: identify(pid) is None


def test_output_and_exit_code_are_kept(log_path: Path) -> None:
    source = "import sys, os; print(os.environ['WORD'], os.getcwd()); print('no', file=sys.stderr); sys.exit(3)"
    process = ManagedProcess(
        "program", [sys.executable, "-c", source], {"WORD": "yes"}, log_path.parent.parent, log_path
    )
    process.start()
    assert process.wait(TIMEOUT) == 3
    assert process.poll() == 3
    assert sorted(process.log_tail().splitlines()) == ["no", f"yes {log_path.parent.parent}"]
    assert process.stop() == 3


def test_stop_asks_first_and_then_ends_the_workers(log_path: Path) -> None:
    process = program(WITH_WORKER, log_path)
    process.start()
    worker = int(wait_for_line(process, "worker").split()[1])
    wait_for_line(process, "leader")
    assert process.stop() == -signal.SIGTERM
    assert identify(worker) is None


def test_stop_does_not_wait_for_ever(log_path: Path) -> None:
    with program(STUBBORN, log_path) as process:
        wait_for_line(process, "ready")
        assert process.stop(timeout=0.1) == -signal.SIGKILL


def test_stop_ends_a_frozen_program(log_path: Path) -> None:
    process = program("import signal; print('ready', flush=True); signal.pause()", log_path)
    process.start()
    wait_for_line(process, "ready")
    process.send_signal(signal.SIGSTOP)
    assert process.stop() == -signal.SIGTERM


def test_kill_spares_the_workers_and_restart_does_not(log_path: Path) -> None:
    process = program(WITH_WORKER, log_path)
    process.start()
    first = process.pid
    worker = int(wait_for_line(process, "worker").split()[1])
    process.kill()
    assert process.poll() == -signal.SIGKILL
    assert identify(worker) is not None
    process.restart()
    assert identify(worker) is None
    assert process.pid != first
    process.stop()


def test_starting_twice_is_refused(log_path: Path) -> None:
    with program(STUBBORN, log_path) as process, pytest.raises(RuntimeError, match="running already"):
        process.start()


def test_nothing_outlives_a_killed_starter(log_path: Path) -> None:
    # The starter starts in a thread that ends at once: the program must not end with that thread.
    starter = f"""
import sys, threading, signal
from pathlib import Path
from devstack import ManagedProcess
process = ManagedProcess("program", [sys.executable, "-c", {WITH_WORKER!r}], None, None, Path({str(log_path)!r}))
thread = threading.Thread(target=process.start)
thread.start()
thread.join()
print(process.pid, flush=True)
signal.pause()
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen(
        [sys.executable, "-c", starter], stdout=subprocess.PIPE, env=environment, text=True
    ) as parent:
        assert parent.stdout is not None
        leader = int(parent.stdout.readline())
        seen = ManagedProcess("seen", [], None, None, log_path)
        worker = int(wait_for_line(seen, "worker").split()[1])
        identity = identify(leader)
        assert identity is not None
        assert is_alive(identity)
        parent.kill()
    wait_until(has_ended(leader), TIMEOUT, "the program outlived its starter")
    wait_until(has_ended(worker), TIMEOUT, "the worker outlived its starter")


def test_wait_until_gives_up_with_its_message() -> None:
    with pytest.raises(TimeoutError, match="the moon is not green"):
        wait_until(lambda: False, 0.01, "the moon is not green", interval=0.001)
