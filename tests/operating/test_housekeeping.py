"""The housekeeper keeps every table bounded: each is pruned by its retention, by an index, apart from the others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from io import StringIO
from typing import NamedTuple

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import connection
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext
from pytest_django import DjangoDbBlocker, Settings

from common.processes.lifecycle import StopFlag
from coupons.messages import ISSUE_REQUESTED
from kafka_bridge.client import ensure_topics
from kafka_bridge.models import HousekeepingRun, Redrive, RedriveItem
from kafka_bridge.operating.bridge_tasks import inbox_retention
from kafka_bridge.operating.housekeeping import Turn, housekeep, housekeeping_tasks
from kafka_bridge.registry import groups
from tests.support.kafka import lose_topics, set_topic_config
from tests.support.plans import reads_of
from tests.support.threads import OpenTransaction, in_another_session

pytestmark = pytest.mark.django_db(transaction=True)

MONITORING = "monitoring"
# Rising, as the ids of events: random ones would make the insert of many rows take minutes.
UUID_OF_N = "lpad(to_hex(n), 32, '0')::uuid"


class Aging(NamedTuple):
    """Rows of a table that grows: how one is inserted, with n for its number and ``aged`` for its time."""

    setting: str
    time: str
    columns: str
    values: str


AGING = {
    "kafka_bridge_outboxmessage": Aging(
        "OUTBOX_RETENTION_HOURS", "created_at", "event_id, event_type, topic, shard, created_at, published_at",
        f"{UUID_OF_N}, 'coupon.issue.succeeded.v1', 't', 0, aged, aged",
    ),
    "kafka_bridge_sample": Aging(
        "SAMPLE_RETENTION_DAYS", "taken_at", "source, taken_at, seconds, counts",
        "'issue', aged, 60, '{\"handled\": 1}'",
    ),
    "kafka_bridge_processedevent": Aging(
        "INBOX_RETENTION_HOURS", "processed_at", "consumer_group, event_id, processed_at",
        f"'{MONITORING}', {UUID_OF_N}, aged",
    ),
    "kafka_bridge_deadletter": Aging(
        "DEAD_LETTER_RETENTION_DAYS", "closed_at",
        "consumer_group, topic, partition, \"offset\", message_timestamp, event_type, headers, error_class,"
        " error_message, closed_at",
        "'issue', 't', 0, n, 0, '', '[]', '', '', aged",
    ),
    "kafka_bridge_redrive": Aging(
        "DEAD_LETTER_RETENTION_DAYS", "ended_at",
        "name, reason, actor, state, rate, selection, total, histogram, wants_preview, ended_at",
        "'', '', '', 'done', 1, '{}', 1, '[]', false, aged",
    ),
    "kafka_bridge_processheartbeat": Aging(
        "HEARTBEAT_RETENTION_HOURS", "seen_at", "id, role, host, pid, started_at, seen_at, turned_at",
        f"{UUID_OF_N}, 'relay', '', 1, aged, aged, aged",
    ),
    "kafka_bridge_alert": Aging(
        "ALERT_RETENTION_DAYS", "ended_at", "id, rule, severity, summary, runbook, ended_at",
        f"{UUID_OF_N}, 'r', 'warning', '', '', aged",
    ),
    "kafka_bridge_alertsilence": Aging(
        "ALERT_RETENTION_DAYS", "until", "rule, until, reason, actor", "'r' || n, aged, '', ''"
    ),
    "coupons_notification": Aging(
        "NOTIFICATION_RETENTION_DAYS", "created_at", "event_id, user_id, template_code, variables, created_at",
        f"{UUID_OF_N}, n, '', '{{}}', aged",
    ),
    "orders_idempotencykey": Aging(
        "IDEMPOTENCY_KEY_RETENTION_HOURS", "created_at", "user_id, operation, key, fingerprint, created_at",
        "n, 'pay', 'k', '', aged",
    ),
    "orders_orderminute": Aging(
        "ORDER_MINUTE_RETENTION_DAYS", "minute", "minute, completed, cancelled, amount", "aged, 0, 0, 0"
    ),
    "django_session": Aging(
        "", "expire_date", "session_key, session_data, expire_date", "n, '', aged + interval '12 hours'"
    ),
}  # fmt: skip


def insert_rows(table: str, rows: int, span: timedelta) -> None:
    """Insert rows of times from ``span`` ago until now, the oldest first."""
    aging = AGING[table]
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {table} ({aging.columns}) SELECT {aging.values} FROM ("
            " SELECT n, now() - (%s - n) * interval '1 second' * %s AS aged FROM generate_series(1, %s) n ORDER BY n"
            ") AS row",
            [rows, span.total_seconds() / rows, rows],
        )


def count(table: str) -> int:
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT count(*) FROM {table}")
        (rows,) = cursor.fetchone() or (0,)
    return int(rows)


def age_of_the_oldest(table: str) -> timedelta:
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT now() - min({AGING[table].time}) FROM {table}")
        (age,) = cursor.fetchone() or (timedelta(),)
    assert isinstance(age, timedelta)
    return age


def retention(table: str, settings: Settings) -> timedelta:
    name = AGING[table].setting
    if not name:
        return timedelta()
    value = getattr(settings, name)
    return timedelta(hours=value) if name.endswith("_HOURS") else timedelta(days=value)


@pytest.fixture
def day_topics(settings: Settings, request: pytest.FixtureRequest) -> str:
    """Topics that keep their messages for a day, in segments of an hour."""
    routes = settings.KAFKA_ROUTES
    settings.KAFKA_ROUTES = {name: replace(route, retention_ms=86_400_000) for name, route in routes.items()}
    prefix: str = request.getfixturevalue("topics")
    for topic in {route.topic for route in settings.KAFKA_ROUTES.values()}:
        set_topic_config(topic, {"segment.ms": "3600000"})
    return prefix


def test_a_week_of_a_busy_service_is_kept_in_bounded_tables(day_topics: str, settings: Settings) -> None:
    """Each table holds what came within its retention, whatever came in the week before."""
    for name in (
        "SAMPLE_RETENTION_DAYS",
        "NOTIFICATION_RETENTION_DAYS",
        "ALERT_RETENTION_DAYS",
        "ORDER_MINUTE_RETENTION_DAYS",
    ):
        setattr(settings, name, 3)
    settings.INBOX_RETENTION_HOURS = 96
    settings.DEAD_LETTER_RETENTION_DAYS = 7
    rows, week = 8000, timedelta(days=8)
    for table in AGING:
        insert_rows(table, rows, week)
    output = StringIO()
    call_command("housekeep", stdout=output)
    for table in AGING:
        kept = retention(table, settings)
        assert age_of_the_oldest(table) <= kept + timedelta(minutes=1), table
        # And nothing else is gone. Sessions expire half a day after the rows of this test were born.
        expected = rows * (kept or timedelta(hours=12)) / week
        assert abs(count(table) - expected) <= 2, table
    assert f"{rows - count('kafka_bridge_outboxmessage')} outbox" in output.getvalue()
    assert not HousekeepingRun.objects.exclude(failure="").exists()
    assert HousekeepingRun.objects.count() == len(housekeeping_tasks())


def test_every_task_has_a_setting_in_the_table_of_retentions(settings: Settings) -> None:
    table = (settings.BASE_DIR / "docs" / "operations.md").read_text().partition("## Pruning and retention")[2]
    for task in housekeeping_tasks():
        assert hasattr(settings, task.setting), task
        assert f"`{task.setting}`" in table, task


def test_what_is_still_needed_stays_however_old_it_is(day_topics: str) -> None:
    for table in AGING:
        insert_rows(table, 10, timedelta(days=400))
    with connection.cursor() as cursor:
        cursor.execute("UPDATE kafka_bridge_deadletter SET closed_at = NULL")
        cursor.execute(
            "INSERT INTO kafka_bridge_alertnotification (alert_id, phase) SELECT id, 'end' FROM kafka_bridge_alert"
        )
        cursor.execute("UPDATE kafka_bridge_outboxmessage SET event_type = %s", [ISSUE_REQUESTED])
    housekeep(StopFlag())
    # Open letters, alerts that were not notified, requests without a result.
    assert count("kafka_bridge_deadletter") == 10
    assert count("kafka_bridge_alert") == 10
    assert count("kafka_bridge_outboxmessage") == 10


def test_a_redrive_that_was_never_started_is_cancelled_after_the_retention_and_later_deleted(
    settings: Settings,
) -> None:
    (task,) = [task for task in housekeeping_tasks() if task.name == "ended redrives"]
    insert_rows("kafka_bridge_redrive", 4, timedelta(days=400))
    forgotten, started, ended, young = Redrive.objects.order_by("id").values_list("id", flat=True)
    aged = Now() - timedelta(days=settings.DEAD_LETTER_RETENTION_DAYS, seconds=1)
    Redrive.objects.exclude(id=ended).update(ended_at=None, state="previewed", created_at=aged)
    Redrive.objects.filter(id=ended).update(ended_at=Now())
    Redrive.objects.filter(id=started).update(started_at=aged, state="paused")
    Redrive.objects.filter(id=young).update(created_at=Now())
    RedriveItem.objects.create(redrive_id=forgotten, letter_id=1)
    assert task.prune(StopFlag()) == 0
    states = {forgotten: "cancelled", started: "paused", ended: "done", young: "previewed"}
    assert dict(Redrive.objects.values_list("id", "state")) == states
    Redrive.objects.filter(id=forgotten).update(ended_at=aged)
    assert task.prune(StopFlag()) == 2
    assert set(Redrive.objects.values_list("id", flat=True)) == {started, ended, young}
    assert not RedriveItem.objects.exists()


def test_an_inbox_is_kept_for_ever_while_its_topic_keeps_everything(topics: str) -> None:
    insert_rows("kafka_bridge_processedevent", 10, timedelta(days=400))
    assert inbox_retention(groups()[MONITORING]) is None
    housekeep(StopFlag())
    assert count("kafka_bridge_processedevent") == 10


def test_an_inbox_outlives_its_topics_outbox_and_setting(day_topics: str, settings: Settings) -> None:
    group = groups()[MONITORING]
    settings.OUTBOX_RETENTION_HOURS, settings.INBOX_RETENTION_HOURS = 1, 1
    # A day, a segment, and a day for a broker that is late.
    assert inbox_retention(group) == timedelta(hours=24 + 1 + 24)
    settings.OUTBOX_RETENTION_HOURS = 72
    assert inbox_retention(group) == timedelta(hours=72 + 24)
    settings.INBOX_RETENTION_HOURS = 200
    assert inbox_retention(group) == timedelta(hours=200)
    # What the broker keeps longer than the route says may be delivered again too.
    topic = settings.KAFKA_ROUTES["order.cancelled.v1"].topic
    set_topic_config(topic, {"retention.ms": "864000000"})
    assert inbox_retention(group) == timedelta(days=10 + 1, hours=1)
    set_topic_config(topic, {"retention.ms": "-1"})
    assert inbox_retention(group) is None
    set_topic_config(topic, {"retention.ms": "86400000", "cleanup.policy": "compact"})
    assert inbox_retention(group) is None


def test_an_inbox_outlives_the_topics_of_earlier_routes(day_topics: str, settings: Settings) -> None:
    group = groups()[MONITORING]
    usual = inbox_retention(group)
    # One was deleted, the other keeps its messages longer than the present topics.
    settings.KAFKA_FORMER_TOPICS = {"order.completed.v1": ("deleted-topic",)}
    assert inbox_retention(group) == usual
    former = settings.KAFKA_ROUTES["coupon.issue.requested.v1"].topic
    settings.KAFKA_FORMER_TOPICS = {"order.completed.v1": ("deleted-topic", former)}
    set_topic_config(former, {"retention.ms": "864000000"})
    assert inbox_retention(group) == timedelta(days=10 + 1, hours=1)


def test_an_inbox_whose_topic_cannot_be_asked_is_not_pruned(day_topics: str, settings: Settings) -> None:
    lose_topics(settings.KAFKA_ROUTES["order.cancelled.v1"].topic)
    insert_rows("kafka_bridge_processedevent", 10, timedelta(days=400))
    assert housekeep(StopFlag()).failed == ["inbox"]
    assert count("kafka_bridge_processedevent") == 10
    ensure_topics(settings.KAFKA_ROUTES)


# One task and the others


@pytest.mark.parametrize(
    ("task", "table", "past"),
    [
        ("outbox", "kafka_bridge_outboxmessage", 9),
        ("closed dead letters", "kafka_bridge_deadletter", 7),
        ("stored notifications", "coupons_notification", 9),
    ],
)
def test_a_table_locked_by_another_session_delays_only_its_task(task: str, table: str, past: int) -> None:
    for name in (table, "orders_idempotencykey"):
        insert_rows(name, 10, timedelta(days=400))

    def lock() -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"LOCK TABLE {table}")

    with OpenTransaction(lock):
        report = housekeep(StopFlag())
    assert report.failed == [task]
    assert report.deleted["idempotency keys"] == 9
    assert "lock timeout" in HousekeepingRun.objects.get(task=task).failure
    assert housekeep(StopFlag()).deleted[task] == past
    run = HousekeepingRun.objects.get(task=task)
    assert (run.deleted, run.failure, run.succeeded_at) == (past, "", run.ran_at)


def test_rows_locked_by_another_session_are_left_for_a_later_run() -> None:
    insert_rows("orders_idempotencykey", 10, timedelta(days=400))

    def lock() -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT FROM orders_idempotencykey ORDER BY id LIMIT 2 FOR UPDATE")

    with OpenTransaction(lock):
        assert housekeep(StopFlag()).deleted["idempotency keys"] == 7
    assert housekeep(StopFlag()).deleted["idempotency keys"] == 2


@pytest.fixture
def no_alerts_table() -> Iterator[None]:
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE kafka_bridge_alert RENAME TO kafka_bridge_alert_away")
    yield
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE kafka_bridge_alert_away RENAME TO kafka_bridge_alert")


def test_a_task_that_fails_is_named_and_keeps_no_other_from_running(no_alerts_table: None) -> None:
    insert_rows("orders_idempotencykey", 10, timedelta(days=400))
    output = StringIO()
    with pytest.raises(CommandError, match="not pruned: ended alerts; the log has the error"):
        call_command("housekeep", stdout=output)
    assert "9 idempotency keys" in output.getvalue()
    run = HousekeepingRun.objects.get(task="ended alerts")
    assert ("kafka_bridge_alert" in run.failure, run.succeeded_at) == (True, None)


def test_two_housekeepers_at_once_share_the_work() -> None:
    for table in ("kafka_bridge_outboxmessage", "orders_idempotencykey", "coupons_notification"):
        insert_rows(table, 10_000, timedelta(days=400))
    other = in_another_session(lambda: housekeep(StopFlag()))
    reports = [housekeep(StopFlag()), other.result(60)]
    assert [report.failed for report in reports] == [[], []]
    for task, table in (
        ("outbox", "kafka_bridge_outboxmessage"),
        ("idempotency keys", "orders_idempotencykey"),
        ("stored notifications", "coupons_notification"),
    ):
        assert sum(report.deleted[task] for report in reports) == 10_000 - count(table)
        assert count(table) < 1000


def test_a_turn_ends_a_task_between_two_batches() -> None:
    insert_rows("orders_idempotencykey", 3000, timedelta(days=40_000))
    report = housekeep(StopFlag(), turn_seconds=0.001)
    assert report.deleted["idempotency keys"] in (0, 1000)
    assert housekeep(StopFlag()).deleted["idempotency keys"] + report.deleted["idempotency keys"] > 2900


def test_a_turn_is_also_over_when_the_process_stops() -> None:
    stop = StopFlag()
    turn = Turn(stop, 60)
    assert not turn
    assert not turn.wait(0)
    turn.request()
    assert (bool(turn), bool(stop), turn.wait(60)) == (True, True, True)


# Plans

MANY = 200_000
SOME = 20_000


@pytest.fixture
def nothing_to_delete(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> None:
    """Tables full of rows within their retention."""
    for table in AGING.keys() - {"kafka_bridge_processheartbeat"}:
        insert_rows(table, MANY if table == "kafka_bridge_outboxmessage" else SOME, timedelta(hours=8))
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")


def test_no_task_scans_a_table_when_there_is_nothing_to_delete(day_topics: str, nothing_to_delete: None) -> None:
    with CaptureQueriesContext(connection) as queries:
        report = housekeep(StopFlag())
    assert (report.failed, set(report.deleted.values())) == ([], {0})
    statements = [
        text for query in queries if (text := query["sql"].strip()).startswith(("SELECT", "DELETE", "UPDATE"))
    ]
    read_tables = set()
    for read in reads_of(statements, AGING.keys() - {"kafka_bridge_processheartbeat"}):
        read_tables.add(read.table)
        assert read.node != "Seq Scan", read.statement
        assert read.rows <= 1000, read.statement
    assert read_tables == AGING.keys() - {"kafka_bridge_processheartbeat"}
