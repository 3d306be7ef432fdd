from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured

from couponsite.environment import Environment, Rate

ROOT = Path(__file__).resolve().parents[2]

Read = Callable[[Environment], Any]


def read(raw: str, how: Read) -> Any:
    return how(Environment({"X": raw}))


@pytest.mark.parametrize(
    ("raw", "how", "value"),
    [
        ("", lambda env: env.flag("X", True), True),
        ("  ", lambda env: env.whole("X", 5), 5),
        ("True", lambda env: env.flag("X", False), True),
        ("1", lambda env: env.flag("X", False), True),
        ("false", lambda env: env.flag("X", True), False),
        ("0", lambda env: env.whole("X", 5), 0),
        ("1.5", lambda env: env.real("X", 1.0), 1.5),
        ("a, b,,", lambda env: env.words("X", []), ["a", "b"]),
        ('{"a": 1}', lambda env: env.json("X", {}), {"a": 1}),
        ("10/min", lambda env: env.rate("X", "1/day"), Rate(10, 60)),
        ("a:1,[::1]:2", lambda env: env.servers("X", None), "a:1,[::1]:2"),
        ("Europe/Berlin", lambda env: env.time_zone("X", "UTC"), "Europe/Berlin"),
        ('{"linger.ms": 5}', lambda env: env.client_options("X", fixed=frozenset()), {"linger.ms": 5}),
    ],
)
def test_a_good_value_is_read(raw: str, how: Read, value: Any) -> None:
    assert read(raw, how) == value


@pytest.mark.parametrize(
    ("raw", "how"),
    [
        *[(raw, lambda env: env.flag("X", False)) for raw in ("yes", "on", "TRUE", "2", "none")],
        *[(raw, lambda env: env.whole("X", 5)) for raw in ("-1", "1.0", "1e3", "0x10", "٣", "1_000", "9" * 30)],
        ("0", lambda env: env.whole("X", 5, minimum=1)),
        *[(raw, lambda env: env.real("X", 1.0)) for raw in ("-0.1", "nan", "inf", "1,5", "soon")],
        *[(raw, lambda env: env.json("X", {})) for raw in ("{", "{'a': 1}", "[" * 100_000)],
        *[(raw, lambda env: env.rate("X", "1/day")) for raw in ("10", "0/min", "-1/min", "10/m", "x/min", "10/")],
        *[(raw, lambda env: env.servers("X", None)) for raw in ("kafka", "a:", ":9092", "a:1,,b:2", "a:0", "a:70000")],
        *[(raw, lambda env: env.time_zone("X", "UTC")) for raw in ("Mars", "../etc/hosts", "/etc/hosts", "Asia", "..")],
        *[
            (raw, lambda env: env.database("X", None))
            for raw in (
                "db",
                "mysql://h/db",
                "postgres://u:hunter2@h:port/db",
                "postgres://",
                "postgres://h",
                "postgres://h:1/",
            )
        ],
        *[
            (raw, lambda env: env.url("X", None, schemes=("redis", "unix")))
            for raw in ("redis", "http://h", "redis://", "redis://:hunter2@h:x", "redis://[h", "redis://h:99999")
        ],
        *[
            (raw, lambda env: env.client_options("X", fixed=frozenset({"acks"})))
            for raw in ('{"acks": 1}', "[]", "1", '{"a": null}', '{"a": {}}')
        ],
        ("hunter2", lambda env: env.secret("X", None, at_least=32)),
        ("", lambda env: env.text("X")),
    ],
)
def test_a_bad_value_is_refused_in_one_line_with_its_name(raw: str, how: Read) -> None:
    with pytest.raises(ImproperlyConfigured) as refusal:
        read(raw, how)
    message = str(refusal.value)
    assert message.startswith("X: ")
    assert "\n" not in message
    assert "hunter2" not in message


REQUIRED = ("SECRET_KEY", "DATABASE_URL", "REDIS_URL", "KAFKA_BOOTSTRAP_SERVERS")
COMPLETE = {
    "SECRET_KEY": "k" * 25 + "0123456789" * 3,
    "DATABASE_URL": "postgres://u@h:5432/d",
    "REDIS_URL": "redis://h:6379/0",
    "KAFKA_BOOTSTRAP_SERVERS": "h:9092",
}


def manage(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """manage.py in an environment of just these variables."""
    return subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("missing", REQUIRED)
def test_a_process_does_not_start_without_what_is_required(missing: str) -> None:
    process = manage("issue_tokens", "--users", "1", **{**COMPLETE, missing: ""})
    assert process.returncode == 1
    assert process.stdout == ""
    assert process.stderr.splitlines() == [f"{missing}: is not set, give it a value (see .env.example)"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DEBUG", "yes"),
        ("SECRET_KEY", "short"),
        ("OUTBOX_MAX_DEPTH", "-1"),
        ("KAFKA_ROUTES", '{"no.such.event": {}}'),
        ("KAFKA_ROUTES", "[]"),
        ("KAFKA_ROUTES", '{"order.completed.v1": {"topic": "a"}, "order.completed.v1": {"topic": "b"}}'),
        ("KAFKA_ROUTES", '{"order.completed.v1": {"topic": "a b"}}'),
        # No body of these has such a field, which would be found out at the first event.
        ("KAFKA_ROUTES", '{"order.completed.v1": {"key": "couponType"}}'),
        ("KAFKA_ROUTES", '{"coupon.issue.requested.v1": {"key": "orderId"}}'),
        ("KAFKA_TOPIC_PREFIX", "a b"),
        ("CSRF_TRUSTED_ORIGINS", "shop.example"),
        ("PORT", "http"),
        ("WEB_CONCURRENCY", "0"),
        ("KAFKA_GROUPS", '{"issue": ""}'),
        ("KAFKA_PRODUCER_CONFIG", '{"acks": 0}'),
        ("KAFKA_CONSUMER_CONFIG", '{"enable.auto.commit": true}'),
        ("KAFKA_CONSUMER_CONFIG", '{"enable.partition.eof": false}'),
        ("BUSINESS_TIME_ZONE", "Mars/Olympus"),
        ("CONSUMER_BACKOFF_SECONDS", "nan"),
    ],
)
def test_a_process_does_not_start_with_a_bad_value(name: str, value: str) -> None:
    process = manage("check", **{**COMPLETE, name: value})
    assert process.returncode == 1
    (line,) = process.stderr.splitlines()
    assert line.startswith(f"{name}: ")


def test_debug_needs_no_other_variable() -> None:
    assert manage("check", DEBUG="1").returncode == 0


def test_the_deployment_check_is_clean() -> None:
    process = manage("check", "--deploy", "--fail-level", "WARNING", **COMPLETE)
    assert process.returncode == 0, process.stderr


def test_the_deployment_check_warns_of_one_replica_on_three_brokers() -> None:
    process = manage("check", "--deploy", **{**COMPLETE, "KAFKA_BOOTSTRAP_SERVERS": "a:1,b:1,c:1"})
    assert "couponsite.W001" in process.stderr


def test_dead_letters_may_not_go_where_events_go() -> None:
    routes = '{"order.completed.v1": {"deadLetterTopic": "order-cancelled"}}'
    process = manage("check", **{**COMPLETE, "KAFKA_ROUTES": routes})
    assert process.returncode == 1
    assert "couponsite.E001" in process.stderr


def test_every_setting_is_in_the_example_and_the_other_way_round() -> None:
    example = (ROOT / ".env.example").read_text()
    listed = {line.partition("=")[0] for line in example.splitlines() if line and not line.startswith("#")}
    sources = (ROOT / "couponsite/settings.py").read_text() + (ROOT / "Procfile").read_text()
    read = set(re.findall(r'env\.\w+\(\s*"(\w+)"', sources)) | set(re.findall(r"\$\{(\w+):-", sources))
    assert listed == read
