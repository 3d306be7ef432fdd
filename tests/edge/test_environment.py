from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from pytest_django import Settings

from couponsite import settings as settings_module
from couponsite.environment.reader import Environment
from couponsite.environment.values import Rate
from kafka_bridge.client import check_client_options

ROOT = Path(__file__).resolve().parents[2]

Read = Callable[[Environment], Any]


def read(raw: str, how: Read) -> Any:
    return how(Environment({"X": raw}))


@pytest.mark.parametrize(
    ("raw", "how", "value"),
    [
        ("", lambda env: env.flag("X", True), True),
        ("  ", lambda env: env.integer("X", 5, minimum=0, maximum=9), 5),
        ("True", lambda env: env.flag("X", False), True),
        ("1", lambda env: env.flag("X", False), True),
        ("false", lambda env: env.flag("X", True), False),
        ("0", lambda env: env.integer("X", 5, minimum=0, maximum=9), 0),
        ("1.5", lambda env: env.decimal("X", 1.0, minimum=0.0, maximum=9.0), 1.5),
        ("a, b,,", lambda env: env.hosts("X", []), ["a", "b"]),
        ("10/min", lambda env: env.rate("X", "1/day"), Rate(10, 60)),
        ("a:1, [::1]:2", lambda env: env.servers("X", None), "a:1,[::1]:2"),
        ("Europe/Berlin", lambda env: env.time_zone("X", "UTC"), "Europe/Berlin"),
        ('{"linger.ms": 5}', lambda env: env.client_options("X", fixed=frozenset(), ranges={}), {"linger.ms": 5}),
        ("unix:///run/r.sock?db=3", lambda env: env.redis("X", None), "unix:///run/r.sock?db=3"),
    ],
)
def test_a_good_value_is_read(raw: str, how: Read, value: Any) -> None:
    assert read(raw, how) == value


@pytest.mark.parametrize(
    ("url", "host", "port", "options"),
    [
        ("postgres://u:p%40ss@h:5433/d", "h", "5433", {}),
        ("postgres://u:p%40ss@%2Frun%2Fpg/d", "/run/pg", "", {}),
        ("postgres://u:p%40ss@/d?host=/run/pg", "/run/pg", "", {}),
        ("postgres://u:p%40ss@[::1]/d?sslmode=require", "::1", "", {"sslmode": "require"}),
        # Of several servers the one that takes writes is meant.
        ("postgres://u:p%40ss@a:1,b:2/d", "a,b", "1,2", {"target_session_attrs": "read-write"}),
        ("postgres://u:p%40ss@a,b/d?target_session_attrs=any", "a,b", "", {"target_session_attrs": "any"}),
    ],
)
def test_a_database_is_where_libpq_finds_it(url: str, host: str, port: str, options: dict[str, str]) -> None:
    assert read(url, lambda env: env.database("X", None)) == {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": "d",
        "USER": "u",
        "PASSWORD": "p@ss",
        "HOST": host,
        "PORT": port,
        "OPTIONS": options,
    }


@pytest.mark.parametrize(
    ("raw", "how"),
    [
        *[
            (raw, lambda env: env.integer("X", 5, minimum=0, maximum=10**9))
            for raw in ("-1", "1.0", "1e3", "0x10", "٣", "1_000", "9" * 30, "9" * 5000, "-")
        ],
        *[
            (raw, lambda env: env.decimal("X", 1.0, minimum=0.0, maximum=9.0))
            for raw in ("-0.1", "nan", "inf", "1,5", "soon")
        ],
        *[(raw, lambda env: env.rate("X", "1/day")) for raw in ("10/m", "x/min", "10/")],
        *[(raw, lambda env: env.servers("X", None)) for raw in ("kafka", "a:", ":9092", "a:1,,b:2", "a:0", "a:70000")],
        *[
            (raw, lambda env: env.database("X", None))
            for raw in (
                "postgres://u:hunter2@h:port/db",
                "postgres://u:hunter2%@h/db",
                "postgres://u:hunter2@h/db?nonsense=hunter2",
            )
        ],
        *[
            (raw, lambda env: env.redis("X", None))
            for raw in ("redis://:hunter2@h:x", "redis://:hunter2@h/cache", "redis://h/0?password=hunter2")
        ],
        *[(raw, lambda env: env.url("X", None)) for raw in ("https://u:hunter2@h:x", "hunter2")],
        ("hunter2", lambda env: env.secret("X", None, at_least=32)),
        ("", lambda env: env.text("X", longest=9)),
        *[(raw, lambda env: env.text("X", longest=9)) for raw in ("a\nb", "a\tb", "a\x85b", "\udcff", "가")],
    ],
)
def test_a_bad_value_is_refused_in_one_line_with_its_name(raw: str, how: Read) -> None:
    with pytest.raises(ImproperlyConfigured) as refusal:
        read(raw, how)
    message = str(refusal.value)
    assert message.startswith("X: ")
    assert message.isprintable()
    assert len(message) < 400
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
        ("ORDER_PAYMENT_MINUTES", "99999999999"),
        ("CONSUMER_BATCH_SIZE", "2000000"),
        ("REDIS_URL", "redis://h:6379/cache"),
        ("ALLOWED_HOSTS", "https://shop.example"),
        ("HOST", "nonsense"),
        ("KAFKA_GROUPS", '{"issue": " "}'),
        ("KAFKA_ROUTES", '{"no.such.event": {}}'),
        ("KAFKA_ROUTES", "[]"),
        ("KAFKA_ROUTES", '{"order.completed.v1": {"topic": "a"}, "order.completed.v1": {"topic": "b"}}'),
        ("KAFKA_ROUTES", '{"order.completed.v1": {"topic": "a b"}}'),
        # No body of these has such a field, which would be found out at the first event.
        ("KAFKA_ROUTES", '{"order.completed.v1": {"key": "couponType"}}'),
        ("KAFKA_ROUTES", '{"coupon.issue.requested.v1": {"key": "orderId"}}'),
        ("KAFKA_TOPIC_PREFIX", "a b"),
        # The outbox keeps what goes through the Redis queue under that name.
        ("KAFKA_ROUTES", '{"coupon.issue.requested.v1": {"topic": "issue-worker"}}'),
        ("KAFKA_ROUTES", '{"order.completed.v1": {"deadLetterTopic": "issue-worker"}}'),
        ("KAFKA_FORMER_TOPICS", '{"coupon.issue.requested.v1": ["issue-worker"]}'),
        ("CSRF_TRUSTED_ORIGINS", "shop.example"),
        ("PORT", "http"),
        ("WEB_CONCURRENCY", "0"),
        ("WEB_KEEP_ALIVE_SECONDS", "61"),
        ("KAFKA_GROUPS", '{"issue": ""}'),
        # Names of workers and of another group: a pause of that name is for those.
        ("KAFKA_GROUPS", '{"notification": "relay"}'),
        ("KAFKA_GROUPS", '{"issue": "issue-worker"}'),
        ("KAFKA_GROUPS", '{"notification": "ranking"}'),
        ("KAFKA_GROUPS", '{"notification": "ranking", "ranking": "ranking"}'),
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


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("KAFKA_ROUTES", '{"order.completed.v1": {"topic": "_transaction_state"}}'),
        ("KAFKA_ROUTES", '{"order.completed.v1": {"deadLetterTopic": "_consumer_offsets"}}'),
        ("KAFKA_FORMER_TOPICS", '{"order.completed.v1": ["_consumer_offsets"]}'),
    ],
)
def test_a_topic_that_the_prefix_makes_one_of_kafkas_own_is_refused(name: str, value: str) -> None:
    assert manage("check", **{**COMPLETE, name: value}).returncode == 0
    process = manage("check", **{**COMPLETE, "KAFKA_TOPIC_PREFIX": "_", name: value})
    assert process.returncode == 1
    (line,) = process.stderr.splitlines()
    assert line.startswith(f"{name}: order.completed.v1: ")
    assert "a name that does not begin with '__', with KAFKA_TOPIC_PREFIX or without" in line


def test_debug_needs_no_other_variable() -> None:
    assert manage("check", DEBUG="1").returncode == 0


def test_the_deployment_check_is_clean() -> None:
    process = manage("check", "--deploy", "--fail-level", "WARNING", **COMPLETE)
    assert process.returncode == 0, process.stderr


def test_the_deployment_check_warns_of_one_replica_on_three_brokers() -> None:
    process = manage("check", "--deploy", **{**COMPLETE, "KAFKA_BOOTSTRAP_SERVERS": "a:1,b:1,c:1"})
    assert "couponsite.W001" in process.stderr


@pytest.mark.parametrize(
    ("changes", "event_type", "topic"),
    [
        ({"deadLetterTopic": "order-cancelled"}, "order.completed.v1", "order-cancelled"),
        # A topic of events may not be what another route has for its dead letters by default.
        ({"topic": "order-cancelled.DLT"}, "order.cancelled.v1", "order-cancelled.DLT"),
    ],
)
def test_dead_letters_may_not_go_where_events_go(changes: dict[str, str], event_type: str, topic: str) -> None:
    process = manage("check", **COMPLETE, KAFKA_ROUTES=json.dumps({"order.completed.v1": changes}))
    assert process.returncode == 1
    assert process.stderr.splitlines() == [
        f"KAFKA_ROUTES: {event_type} sends its dead letters to the event topic '{topic}': name another deadLetterTopic"
    ]


def test_every_setting_is_in_the_example_and_the_other_way_round() -> None:
    example = (ROOT / ".env.example").read_text()
    listed = {line.partition("=")[0] for line in example.splitlines() if line and not line.startswith("#")}
    assert listed == set(settings_module.env.limits)


def test_the_example_names_the_range_of_every_number_and_starts() -> None:
    lines = (ROOT / ".env.example").read_text().splitlines()
    example = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    for name, limits in settings_module.env.limits.items():
        if is_number(limits.accepted):
            first, last = (f"{float(raw):.12g}" for raw in limits.accepted)
            above = "\n".join(lines[: lines.index(f"{name}={example[name]}")]).rpartition("\n\n")[2]
            assert f"({first} to {last})" in above, name
    process = manage("check", **{**example, "SECRET_KEY": COMPLETE["SECRET_KEY"]})
    assert process.returncode == 0, process.stderr


def test_the_procfile_takes_nothing_but_settings() -> None:
    taken = set(re.findall(r"\$\{(\w+):-", (ROOT / "Procfile").read_text()))
    assert taken <= set(settings_module.env.limits)


def test_no_setting_is_read_beside_the_table_of_limits() -> None:
    sources = [
        path
        for package in ("couponsite", "coupons", "orders", "kafka_bridge", "common")
        for path in sorted((ROOT / package).rglob("*.py"))
    ]
    asked = {
        f"{path.relative_to(ROOT)} {name}"
        for path in sources
        for name in re.findall(r"os\.environ(?:\.get\(|\[)\s*[\"'](\w+)", path.read_text())
        if name not in settings_module.env.limits
    }
    assert not asked


LIMITS = [
    pytest.param(name, raw, is_accepted, id=f"{name}-{'at' if is_accepted else 'past'}-{number}")
    for name, limits in settings_module.env.limits.items()
    for is_accepted, raws in ((True, limits.accepted), (False, limits.refused))
    for number, raw in enumerate(raws)
]


@pytest.mark.parametrize(("name", "raw", "is_accepted"), LIMITS)
def test_every_setting_is_taken_at_its_limits_and_refused_past_them_by_its_name(
    name: str, raw: str, is_accepted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for listed in settings_module.env.limits:
        monkeypatch.delenv(listed, raising=False)
    for required, value in {**COMPLETE, name: raw}.items():
        monkeypatch.setenv(required, value)
    try:
        runpy.run_path(str(ROOT / "couponsite/settings.py"))
    except ImproperlyConfigured as refusal:
        message = str(refusal)
        assert message.startswith(f"{name}: ")
        assert message.isprintable()
        assert len(message) < 400
        assert not is_accepted, message
    else:
        assert is_accepted


@pytest.mark.parametrize("end", [0, -1])
def test_a_process_starts_with_every_number_at_its_limit(end: int) -> None:
    numbers = {
        name: limits.accepted[end] for name, limits in settings_module.env.limits.items() if is_number(limits.accepted)
    }
    assert len(numbers) > 15
    process = manage("check", **COMPLETE, **numbers)
    assert process.returncode == 0, process.stderr


def is_number(accepted: tuple[str, ...]) -> bool:
    return all(re.fullmatch(r"[0-9.]+", raw) for raw in accepted)


@pytest.mark.parametrize("setting", ["KAFKA_PRODUCER_CONFIG", "KAFKA_CONSUMER_CONFIG"])
def test_librdkafka_takes_what_the_settings_take(setting: str, settings: Settings) -> None:
    for raw in settings_module.env.limits[setting].accepted:
        options = json.loads(raw)
        if options.get("session.timeout.ms", 0) > 90_000:
            # It must not be longer than the time between two polls.
            options["max.poll.interval.ms"] = 300_000
        setattr(settings, setting, options)
        check_client_options()
