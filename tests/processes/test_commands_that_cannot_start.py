"""A process that cannot start says why in one line, without a traceback, and ends with 1."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from couponsite.demo.processes import procfile_process
from tests.support.service import environment, run_command

pytestmark = pytest.mark.django_db

# The discard port: nothing listens there.
NOBODY = "127.0.0.1:9"
RELAY = ("relay_outbox",)
ISSUER = ("consume_coupons", "--group", "issue")
WORKER = ("issue_worker",)
COUPON = ("create_coupon", "SPRING", "--quantity", "1")
PRODUCT = ("create_product", "Socks", "--price", "1")


def plain_lines(output: str) -> list[str]:
    """The lines that are not structured logs."""
    return [line for line in output.splitlines() if line.strip() and not is_structured(line)]


def is_structured(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def assert_one_line(ended: subprocess.CompletedProcess[str], *words: str) -> None:
    assert ended.returncode == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    (line,) = plain_lines(ended.stderr)
    assert all(word in line for word in words), line


@pytest.mark.parametrize("command", [RELAY, ISSUER, WORKER, COUPON, PRODUCT])
def test_an_unreachable_database_is_named(command: tuple[str, ...]) -> None:
    env = environment(DATABASE_URL=f"postgres://nobody@{NOBODY}/none")
    assert_one_line(run_command(*command, "--wait", "1", env=env), "PostgreSQL", "port 9")


@pytest.mark.parametrize("command", [("create_topics",), ISSUER])
def test_an_unreachable_kafka_is_named(command: tuple[str, ...]) -> None:
    env = environment(KAFKA_BOOTSTRAP_SERVERS=NOBODY)
    assert_one_line(run_command(*command, "--wait", "1", env=env), "Kafka", NOBODY)


def test_an_unreachable_redis_is_named_by_who_lives_on_it() -> None:
    env = environment(REDIS_URL=f"redis://{NOBODY}/0")
    assert_one_line(run_command(*WORKER, "--wait", "1", env=env), "Redis", NOBODY)


@pytest.mark.parametrize("command", [RELAY, ISSUER, WORKER])
def test_a_setting_that_does_not_parse_is_named(command: tuple[str, ...]) -> None:
    assert_one_line(run_command(*command, env=environment(CONSUMER_BATCH_SIZE="many")), "CONSUMER_BATCH_SIZE")


def test_a_missing_secret_is_named() -> None:
    assert_one_line(run_command(*RELAY, env=environment(SECRET_KEY="")), "SECRET_KEY")


def test_an_unknown_group_is_named() -> None:
    assert_one_line(run_command("consume_coupons", "--group", "nobodys", env=environment()), "nobodys", "issue")


def test_the_web_process_does_not_start_with_a_setting_that_does_not_parse(tmp_path: Path) -> None:
    web = procfile_process("web", environment(DEBUG="perhaps", PORT="0"), tmp_path / "web.log")
    with web:
        assert web.wait(30) == 1
    (line,) = plain_lines(web.log_path.read_text())
    assert "DEBUG" in line
