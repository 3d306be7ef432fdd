"""Before an event: every check says no-go when what it looks at is broken, and names the remedy."""

from __future__ import annotations

import io
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta

import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from django.conf import settings as project
from django.core.management import CommandError, call_command
from django.db import InterfaceError, connection
from django.db.models import F
from django.db.models.functions import Now
from django.utils.timezone import now
from django_redis import get_redis_connection
from pytest_django import Settings
from redis.exceptions import RedisError

from common.chunks import chunks
from common.postgres.clock import database_time
from common.processes.lifecycle import StopFlag
from coupons.admission.gate.store import GateStore
from coupons.issuance.accept_bulk import BulkIssue, bulk_accept
from coupons.models import Coupon, IssueRequest, UserCoupon
from coupons.preflight import rehearsal
from coupons.preflight.capacity import BYTES_PER_REQUEST
from coupons.preflight.rehearsal import rehearse
from coupons.preflight.run import gate_warm, preflight
from coupons.preflight.senders import SentRequest
from devstack import Part
from devstack.ports import free_port
from kafka_bridge.client import delete_topics, ensure_topics
from kafka_bridge.models import (
    Alert,
    AlertNotification,
    DeadLetter,
    HeldMessage,
    OperatorAction,
    OutboxHold,
    OutboxMessage,
    ProcessedEvent,
    ProcessHeartbeat,
    SweptPartition,
)
from kafka_bridge.operating import preflight_checks
from kafka_bridge.operating.alert_test import alert_test_send
from kafka_bridge.operating.group_pauses import find_target, pause
from kafka_bridge.operating.notifications import send_next
from kafka_bridge.operating.preflight import CheckLine, Verdict, is_go
from kafka_bridge.registry import groups
from tests.admission.conftest import issue
from tests.support.messages import message
from tests.support.own_redis import on_redis, redis_server
from tests.support.provider import Provider, close_http_client

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("redis_flushed")]

TYPE = "SUMMER"
MakeCoupon = Callable[..., Coupon]


@pytest.fixture(scope="module")
def own_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Part]:
    """A Redis that only these tests use: they change its limits."""
    with redis_server("redis-of-preflight", tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis_limits(own_redis: Part, settings: Settings) -> Iterator[None]:
    """A Redis with a limit and without eviction, as it is to be run."""
    with on_redis(own_redis, settings):
        redis = get_redis_connection("default")
        redis.flushdb()
        redis.config_set("maxmemory", 2_000_000_000)
        redis.config_set("maxmemory-policy", "noeviction")
        yield


def beat(role: str, number: int, **fields: object) -> ProcessHeartbeat:
    return ProcessHeartbeat.objects.create(
        id=f"00000000-0000-0000-0000-{number:012}",
        **{
            "role": role, "host": "here", "pid": number, "version": "1",
            "started_at": now(), "seen_at": Now(), "turned_at": Now(), **fields,
        },
    )  # fmt: skip


@pytest.fixture(scope="module")
def prefix() -> Iterator[str]:
    """The prefix of topics that exist for all tests of this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(project, "KAFKA_TOPIC_PREFIX", f"t{secrets.token_hex(4)}-")
        created, _ = ensure_topics(project.KAFKA_ROUTES)
        yield project.KAFKA_TOPIC_PREFIX
        delete_topics(created)


@pytest.fixture
def ready(make_coupon: MakeCoupon, prefix: str, redis_limits: None, settings: Settings) -> Coupon:
    """A coupon with a loaded gate, and a service in which everything is as it should be."""
    settings.KAFKA_TOPIC_PREFIX = prefix
    coupon = make_coupon(
        coupon_type=TYPE, admission="gate", total_quantity=100, discount_type="FIXED", discount_value=1000
    )
    gate_warm(TYPE)
    for number, role in enumerate(("web", "site", "relay", "housekeeper")):
        beat(role, number)
    beat("consumer", 9, groups=list(groups()))
    SweptPartition.objects.create(
        consumer_group="issue", topic=f"{prefix}coupon-issue-request", partition=0, messages=0, read_at=Now()
    )
    settings.ALERT_WEBHOOK_URL = "http://127.0.0.1:9/"
    settings.POSTGRES_DISK_BYTES = 10**15
    settings.TRUSTED_PROXY_COUNT = 1
    OperatorAction.objects.create(actor="sender", action="test_alert.deliver", subject="test-alert")
    return coupon


def no_go(lines: list[CheckLine]) -> dict[str, CheckLine]:
    return {line.name: line for line in lines if line.verdict is Verdict.NO_GO}


def test_all_is_go_when_nothing_is_wrong(ready: Coupon) -> None:
    lines = preflight(TYPE)
    assert {line.verdict for line in lines} == {Verdict.GO}, no_go(lines)
    printed = io.StringIO()
    call_command("preflight", TYPE, stdout=printed)
    assert printed.getvalue().splitlines()[-1] == "go"


def sold_out(settings: Settings) -> None:
    Coupon.objects.update(issued=F("total_quantity"))


def paused(settings: Settings) -> None:
    Coupon.objects.update(paused=True)


def closed(settings: Settings) -> None:
    Coupon.objects.update(closes_at=Now())


def without_cap(settings: Settings) -> None:
    Coupon.objects.update(discount_type="PERCENT", discount_value=10)


def gate_lost(settings: Settings) -> None:
    get_redis_connection("default").delete(*GateStore(Coupon.objects.get().id).keys)


def small_depth(settings: Settings) -> None:
    settings.OUTBOX_MAX_DEPTH = 499


def short_deadline(settings: Settings) -> None:
    settings.REQUEST_DEADLINE_SECONDS, settings.CONSUMER_BATCH_SIZE = 24, 1


def short_age(settings: Settings) -> None:
    settings.OUTBOX_MAX_AGE_SECONDS, settings.CONSUMER_BATCH_SIZE = 24, 1


def debugging(settings: Settings) -> None:
    settings.DEBUG = True


def evicting(settings: Settings) -> None:
    get_redis_connection("default").config_set("maxmemory-policy", "allkeys-lru")


def unlimited(settings: Settings) -> None:
    get_redis_connection("default").config_set("maxmemory", 0)


def full(settings: Settings) -> None:
    redis = get_redis_connection("default")
    redis.config_set("maxmemory", redis.info()["used_memory"] + 200_000)


def small_disk(settings: Settings) -> None:
    settings.POSTGRES_DISK_BYTES = 1_000_000


def many_processes(settings: Settings) -> None:
    settings.WEB_THREADS = 256
    for number in range(100, 110):
        beat("site", number)


def few_brokers(settings: Settings) -> None:
    settings.KAFKA_BROKERS_EXPECTED = 2


def topic_missing(settings: Settings) -> None:
    settings.KAFKA_TOPIC_PREFIX = "no-such-topics-"


def topic_with_few_partitions(settings: Settings) -> None:
    admin = AdminClient({"bootstrap.servers": settings.KAFKA_BOOTSTRAP_SERVERS})
    name = f"{settings.KAFKA_TOPIC_PREFIX}few"
    admin.create_topics([NewTopic(name, 1, 1)])[name].result()
    routes = dict(settings.KAFKA_ROUTES)
    kind = "order.completed.v1"
    routes[kind] = type(routes[kind])("few", key="orderId", partitions=3)
    settings.KAFKA_ROUTES = routes


def old_outbox_row(settings: Settings) -> None:
    OutboxMessage.objects.create(
        event_id="00000000-0000-0000-0000-000000000001", event_type="x.v1", topic="x", shard=0,
        created_at=Now() - timedelta(seconds=11),
    )  # fmt: skip


def topic_held(settings: Settings) -> None:
    OutboxHold.objects.create(topic="order-completed", reason="their system is down")


def row_held(settings: Settings) -> None:
    HeldMessage.objects.create(message_id=7, shard=0, topic="order-completed", reason="topic", last_error="no topic")


def group_paused(settings: Settings) -> None:
    pause(find_target("results"), actor="olga", reason="their provider is down")


def behind(settings: Settings) -> None:
    SweptPartition.objects.update(messages=5, oldest_at=Now() - timedelta(seconds=30))


def unreported(settings: Settings) -> None:
    SweptPartition.objects.all().delete()


def letter_open(settings: Settings) -> None:
    DeadLetter.objects.create(
        consumer_group="issue", topic="t", partition=0, offset=1, message_timestamp=1, event_type="x.v1",
        headers=b"[]", error_class="ValueError", error_message="broken",
    )  # fmt: skip


def process_ended(role: str) -> Callable[[Settings], None]:
    def end(settings: Settings) -> None:
        ProcessHeartbeat.objects.filter(role=role).delete()

    return end


def process_silent(settings: Settings) -> None:
    beat("orders", 50, seen_at=Now() - timedelta(seconds=60))


def process_hanging(settings: Settings) -> None:
    beat("orders", 50, turned_at=Now() - timedelta(minutes=5))


def two_versions(settings: Settings) -> None:
    beat("orders", 50, version="2")


def alert_old(settings: Settings) -> None:
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE kafka_bridge_operatoraction")
    OperatorAction.objects.create(
        actor="sender", action="test_alert.deliver", subject="x", created_at=Now() - timedelta(hours=25)
    )


def no_webhook(settings: Settings) -> None:
    settings.ALERT_WEBHOOK_URL = ""


@pytest.mark.parametrize(
    ("breaks", "name"),
    [
        (sold_out, "coupon"),
        (paused, "coupon"),
        (closed, "coupon"),
        (without_cap, "money"),
        (gate_lost, "gate"),
        (small_depth, "OUTBOX_MAX_DEPTH"),
        (short_deadline, "REQUEST_DEADLINE_SECONDS"),
        (short_age, "OUTBOX_MAX_AGE_SECONDS"),
        (debugging, "DEBUG"),
        (evicting, "Redis policy"),
        (unlimited, "Redis memory"),
        (full, "Redis memory"),
        (small_disk, "disk"),
        (many_processes, "connections"),
        (few_brokers, "brokers"),
        (topic_missing, "topics"),
        (topic_with_few_partitions, "topics"),
        (old_outbox_row, "outbox"),
        (topic_held, "holds"),
        (row_held, "holds"),
        (group_paused, "pauses"),
        (behind, "lag"),
        (unreported, "lag"),
        (letter_open, "dead letters"),
        (process_ended("web"), "processes"),
        (process_ended("site"), "processes"),
        (process_ended("relay"), "processes"),
        (process_ended("housekeeper"), "processes"),
        (process_ended("consumer"), "processes"),
        (process_silent, "processes"),
        (process_hanging, "processes"),
        (two_versions, "versions"),
        (alert_old, "test alert"),
        (no_webhook, "test alert"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_line_says_no_go_when_it_is_broken(
    ready: Coupon, settings: Settings, breaks: Callable[[Settings], None], name: str
) -> None:
    breaks(settings)
    found = no_go(preflight(TYPE))
    assert set(found) == {name}
    assert found[name].remedy


def test_the_clocks_are_compared(ready: Coupon, monkeypatch: pytest.MonkeyPatch) -> None:
    later = database_time() + timedelta(seconds=30)
    monkeypatch.setattr(preflight_checks, "database_time", lambda: later)
    assert "clocks" in no_go(preflight(TYPE))


def test_services_that_are_away_are_lines_and_not_tracebacks(
    ready: Coupon, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight_checks, "KAFKA_SECONDS", 0.2)
    settings.KAFKA_BOOTSTRAP_SERVERS = f"127.0.0.1:{free_port()}"
    found = no_go(preflight(TYPE))
    assert set(found) == {"topics"}
    assert "Kafka does not list its topics" in found["topics"].found


def test_the_command_exits_with_1_and_names_an_unknown_coupon(ready: Coupon) -> None:
    printed = io.StringIO()
    with pytest.raises(CommandError, match="no-go: 1 of 1 lines"):
        call_command("preflight", "WINTER", stdout=printed)
    assert "there is no coupon WINTER" in printed.getvalue()
    assert "-> python manage.py create_coupon WINTER" in printed.getvalue()


def test_more_expected_requests_need_more(ready: Coupon, settings: Settings) -> None:
    settings.OUTBOX_MAX_DEPTH = 1_000
    assert is_go(preflight(TYPE, 1_000))
    assert set(no_go(preflight(TYPE, 1_001))) == {"OUTBOX_MAX_DEPTH"}


def test_an_unknown_disk_is_no_reason_to_stop(ready: Coupon, settings: Settings) -> None:
    settings.POSTGRES_DISK_BYTES = 0
    lines = preflight(TYPE)
    assert is_go(lines)
    assert [line.name for line in lines if line.verdict is Verdict.UNKNOWN] == ["disk"]


def test_warming_loads_the_gate(ready: Coupon, settings: Settings) -> None:
    gate_lost(settings)
    call_command("preflight", TYPE, "--warm", stdout=io.StringIO())
    assert GateStore(ready.id).is_loaded()


def test_a_test_alert_counts_once_the_webhook_has_accepted_it(ready: Coupon, settings: Settings) -> None:
    alert_old(settings)
    webhook = Provider()
    settings.ALERT_WEBHOOK_URL = webhook.url
    try:
        alert_test_send(actor="olga", reason="before the sale")
        assert send_next()
        assert "test alert" in no_go(preflight(TYPE)), "nothing has accepted it"
        webhook.up()
        AlertNotification.objects.update(next_try_at=Now())
        assert send_next()
        assert is_go(preflight(TYPE))
    finally:
        close_http_client()
        webhook.close()
    assert Alert.objects.filter(ended_at=None).count() == 0
    recorded = OperatorAction.objects.order_by("-id").values_list("action", "actor")
    assert list(recorded)[:2] == [("test_alert.deliver", "the sender of notifications"), ("test_alert.send", "olga")]


class _EndsTheSession:
    """A sender whose session PostgreSQL ends during the sale."""

    way = "not at all"

    def send(self, clone: Coupon, users: Iterable[int]) -> list[SentRequest]:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        raise AssertionError("the session goes on")

    def statuses(self, sent: Sequence[SentRequest]) -> list[str | None]:
        return []


def _steps_of_a_rehearsal() -> dict[str, CheckLine]:
    lines = rehearse(TYPE, actor="olga", stop=StopFlag(), sender=_EndsTheSession())
    return {line.name: line for line in lines}


def test_a_rehearsal_whose_session_is_ended_closes_its_copy_in_another(ready: Coupon) -> None:
    steps = _steps_of_a_rehearsal()
    assert [(name, line.verdict) for name, line in steps.items()] == [
        ("copy", "go"), ("sale", "no-go"), ("cleanup", "go"),
    ]  # fmt: skip
    assert steps["sale"].found.startswith("cannot be checked: ")
    closes_at = Coupon.objects.get(rehearsal=True).closes_at
    assert closes_at is not None
    assert closes_at <= database_time()


@pytest.mark.parametrize(
    ("error", "found", "remedy"),
    [
        (InterfaceError("connection already closed"), "stays open until 10 minutes after it was made", "SET closes_at"),
        (RedisError("away"), "is closed, but its gate is still in Redis: away", "start Redis"),
    ],
)
def test_a_rehearsal_keeps_its_steps_when_its_copy_cannot_be_closed(
    ready: Coupon, monkeypatch: pytest.MonkeyPatch, error: Exception, found: str, remedy: str
) -> None:
    def fail(clone: Coupon) -> None:
        raise error

    monkeypatch.setattr(rehearsal, "clone_close", fail)
    steps = _steps_of_a_rehearsal()
    assert [(name, line.verdict) for name, line in steps.items()] == [
        ("copy", "go"), ("sale", "no-go"), ("cleanup", "no-go"),
    ]  # fmt: skip
    name = Coupon.objects.get(rehearsal=True).coupon_type
    assert f"{name} {found}" in steps["cleanup"].found
    assert remedy in steps["cleanup"].remedy


def test_the_bytes_of_a_request_are_those_of_the_real_tables(gate_coupon: Coupon) -> None:
    """Pages of tables and indexes that a thousand requests, half of them issued, add: outbox, result and inbox."""
    number = 2_000
    tables = (OutboxMessage, IssueRequest, UserCoupon, ProcessedEvent)
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE " + ", ".join(model._meta.db_table for model in tables) + " CASCADE")

        def size() -> int:
            cursor.execute(
                "SELECT sum(pg_total_relation_size(name::regclass))::bigint FROM unnest(%s) AS name",
                [[model._meta.db_table for model in tables]],
            )
            (bytes_now,) = cursor.fetchone() or (0,)
            return int(bytes_now)

        before = size()
        Coupon.objects.update(total_quantity=number)
        users = range(1, number + 1)
        for start in range(0, number, 500):
            bulk_accept(batch=BulkIssue(gate_coupon.id, "SUMMER", "b"), user_ids=users[start : start + 500])
        requested = OutboxMessage.objects.filter(event_type="coupon.issue.requested.v1").order_by("id")
        for chunk in chunks(requested, 500):
            issue([message(bytes(row.payload or b"")) for row in chunk])
        results = OutboxMessage.objects.exclude(event_type="coupon.issue.requested.v1")
        ProcessedEvent.objects.bulk_create(
            [ProcessedEvent(consumer_group="results", event_id=row.event_id) for row in results]
        )
        assert UserCoupon.objects.count() == number
        per_request = (size() - before) / number
    assert BYTES_PER_REQUEST / 2 < per_request <= BYTES_PER_REQUEST
