"""A process that cannot start says why in one line, without a traceback, and ends with 1."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from django.conf import settings
from django.core.management import CommandError, call_command

from demo.processes import procfile_process
from tests.support.service import environment, run_command

pytestmark = pytest.mark.django_db

# The discard port: nothing listens there.
NO_SERVER = "127.0.0.1:9"
RELAY = ("relay_outbox",)
ISSUER = ("consume_coupons", "--group", "issue")
WORKER = ("issue_worker",)
COUPON = ("create_coupon", "SPRING", "--quantity", "1")
PRODUCT = ("create_product", "Socks", "--price", "1")
HOUSEKEEP = ("housekeep",)
TOPICS = ("create_topics",)
REPUBLISH = ("republish_topic", "order-completed", "--reason", "lost")


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


@pytest.mark.parametrize("command", [RELAY, ISSUER, WORKER, COUPON, PRODUCT, REPUBLISH, HOUSEKEEP, TOPICS])
def test_an_unreachable_database_is_named(command: tuple[str, ...]) -> None:
    env = environment(DATABASE_URL=f"postgres://unused@{NO_SERVER}/none")
    assert_one_line(run_command(*command, "--wait", "1", env=env), "PostgreSQL", "port 9")


@pytest.mark.parametrize("command", [TOPICS, ISSUER, REPUBLISH])
def test_an_unreachable_kafka_is_named(command: tuple[str, ...]) -> None:
    env = environment(KAFKA_BOOTSTRAP_SERVERS=NO_SERVER)
    assert_one_line(run_command(*command, "--wait", "1", env=env), "Kafka", NO_SERVER)


def test_an_unreachable_redis_is_named_by_who_lives_on_it() -> None:
    env = environment(REDIS_URL=f"redis://{NO_SERVER}/0")
    assert_one_line(run_command(*WORKER, "--wait", "1", env=env), "Redis", NO_SERVER)


@pytest.mark.parametrize("command", [RELAY, ISSUER, WORKER])
def test_a_setting_that_does_not_parse_is_named(command: tuple[str, ...]) -> None:
    assert_one_line(run_command(*command, env=environment(CONSUMER_BATCH_SIZE="many")), "CONSUMER_BATCH_SIZE")


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("KAFKA_ROUTES", '{"order.completed.v1": {"topic": "__consumer_offsets"}}', "those are Kafka's own"),
        ("KAFKA_ROUTES", '{"order.completed.v1": {"deadLetterTopic": "order-cancelled"}}', "event topic"),
        ("KAFKA_ROUTES", '{"coupon.issue.requested.v1": {"topic": "issue-worker"}}', "another transport"),
        ("KAFKA_GROUPS", '{"notification": "relay"}', "names the relays"),
        ("KAFKA_GROUPS", '{"notification": "ranking"}', "another group"),
    ],
)
@pytest.mark.parametrize("command", [RELAY, TOPICS])
def test_a_name_that_means_something_else_is_named(command: tuple[str, ...], name: str, value: str, why: str) -> None:
    assert_one_line(run_command(*command, env=environment(**{name: value})), f"{name}: ", why)


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (("consume_coupons", "--batch-size", "2000000"), "--batch-size"),
        (("consume_coupons", "--concurrency", "100000"), "--concurrency"),
        (("issue_worker", "--batch-size", "2000000"), "--batch-size"),
        (("relay_outbox", "--batch-size", "10001"), "--batch-size"),
        (("relay_outbox", "--wait", "nan"), "--wait"),
        (("relay_outbox", "--wait", "1e300"), "--wait"),
        (("expire_orders", "--every", "86401"), "--every"),
        (("reconcile", "--patience", "0"), "--patience"),
        (("reconcile", "--every", "9" * 5000), "--every"),
        (("create_product", "Socks", "--price", "1000000000000001"), "--price"),
        ((*COUPON, "--valid-days", "36501"), "--valid-days"),
        ((*COUPON, "--opens-at", "0001-01-01T00:00:00+09:00"), "--opens-at"),
        ((*COUPON, "--closes-at", "9999-12-31T23:59:59-05:00"), "--closes-at"),
    ],
)
def test_an_option_out_of_range_is_named(command: tuple[str, ...], option: str) -> None:
    with pytest.raises(CommandError) as refusal:
        call_command(*command)
    assert str(refusal.value).startswith(f"Error: argument {option}: ")
    assert len(str(refusal.value)) < 200


def test_a_process_does_not_start_with_an_option_out_of_range() -> None:
    ended = run_command("consume_coupons", "--batch-size", "2000000", env=environment())
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    assert ended.stderr.splitlines()[-1].endswith("'2000000' is not a whole number from 1 to 10000")


@pytest.mark.parametrize("command", [RELAY, WORKER, ("check",)])
def test_a_redis_database_that_the_server_lacks_is_named(command: tuple[str, ...]) -> None:
    address = settings.REDIS_URL.partition("?")[0].rpartition("/")[0]
    assert_one_line(run_command(*command, env=environment(REDIS_URL=f"{address}/9999")), "REDIS_URL: ")


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
