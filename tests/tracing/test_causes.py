"""Each way to be stuck has one cause on the page, and a remedy: the states that processes report, as rows."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import msgspec
import pytest
from django.conf import settings
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.db.models.functions import Now
from django.test import Client
from django_redis import get_redis_connection
from uuid_utils.compat import uuid7

from coupons.models import Reservation, RolloutChange
from coupons.redis_queue.queue import QUEUE
from coupons.request_trace import RequestCause
from couponsite.ops.remedies import remedy_of
from kafka_bridge.lag import HeldPartition
from kafka_bridge.models import Alert, HeldMessage, OutboxHold, OutboxMessage, ProcessHeartbeat, RelayLease
from kafka_bridge.operating.delivery import DeliveryCause, Problem
from kafka_bridge.operating.group_pauses import PauseTarget, pause, resume
from kafka_bridge.outbox.message_trace import outbox_traces
from kafka_bridge.partitioner import partition_of
from kafka_bridge.registry import prefixed
from orders.order_trace import OrderCause
from tests.support.factories import CouponFactory

from .conftest import Decide, accept, have_a_process, have_a_relay, publish_all

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("redis_flushed")]

TOPIC = "coupon-issue-request"


def cause(client: Client, request_id: UUID) -> str | None:
    problem = client.get(f"/ops/requests/{request_id}").context["trace"].problem
    return None if problem is None else str(problem.cause)


def page(client: Client, request_id: UUID) -> str:
    return client.get(f"/ops/requests/{request_id}").content.decode()


def age(seconds: float) -> None:
    """As if every row of the outbox had been written so long ago."""
    with connection.cursor() as cursor:
        cursor.execute("UPDATE kafka_bridge_outboxmessage SET created_at = now() - %s * interval '1 second'", [seconds])


def test_without_a_relay_the_one_that_fell_silent_is_named(viewer: Client, request_id: UUID) -> None:
    started = {"started_at": Now() - timedelta(hours=1)}
    have_a_process("relay", pid=77, seen_at=Now() - timedelta(seconds=300), **started)
    have_a_process("relay", pid=78, seen_at=Now() - timedelta(seconds=90), **started)
    summary = viewer.get(f"/ops/requests/{request_id}").context["trace"].problem.summary
    assert re.search(r"The last one, .*78.*, was seen 9\d s ago", summary)


@pytest.fixture
def request_id() -> UUID:
    """An accepted, undecided request."""
    return accept(CouponFactory.create(coupon_type="SUMMER"), 1).request_id


def hold(reason: str, error: str = "") -> None:
    row = OutboxMessage.objects.get()
    HeldMessage.objects.create(message_id=row.id, shard=row.shard, topic=row.topic, reason=reason, last_error=error)


def release(client: Client, key: bytes | None) -> None:
    """Release a hold of the topic as its page does, by an operator who may."""
    User.objects.get(username="victor").user_permissions.add(Permission.objects.get(codename="hold_messages"))
    assert client.get("/ops/holds").status_code == 200
    hold_id = OutboxHold.objects.get(topic=TOPIC, key=key).pk
    assert client.post("/ops/holds/release", {"hold": hold_id, "reason": "corrected"}).status_code == 303


def test_without_a_relay(viewer: Client, request_id: UUID) -> None:
    assert cause(viewer, request_id) == "relay-down"
    have_a_relay()
    assert cause(viewer, request_id) is None
    RelayLease.objects.update(expires_at="2020-01-01T00:00:00Z")
    assert cause(viewer, request_id) == "relay-down"


def test_behind_other_rows(viewer: Client, request_id: UUID) -> None:
    accept(CouponFactory.create(coupon_type="WINTER"), 2)
    behind = [accept(CouponFactory.create(coupon_type=f"C{number}"), 3).request_id for number in range(3)]
    RelayLease.objects.all().delete()
    have_a_relay()
    age(30)
    assert cause(viewer, request_id) == "outbox-behind"
    assert "0 rows of its shard" in page(viewer, request_id)
    OutboxMessage.objects.update(shard=5)
    assert "4 rows of its shard 5 come first" in page(viewer, behind[-1])
    Alert.objects.create(rule="broker-down", severity="critical", summary="no broker answers", runbook="")
    assert cause(viewer, request_id) == "kafka-away"


@pytest.mark.parametrize("reason", ["topic", "key"])
def test_held_by_an_operator(viewer: Client, request_id: UUID, reason: str) -> None:
    have_a_relay()
    publish_all()
    hold(reason)
    key = None if reason == "topic" else b"SUMMER"
    OutboxHold.objects.create(topic=TOPIC, key=b"OTHER", reason="of no concern")
    OutboxHold.objects.create(topic=TOPIC, key=key, reason="wrong terms")
    assert cause(viewer, request_id) == "held-by-operator"
    trace = viewer.get(f"/ops/requests/{request_id}").context["trace"]
    assert "wrong terms" in trace.problem.summary
    assert 'href="/ops/holds"' in page(viewer, request_id)
    release(viewer, key)
    assert [bytes(one.key or b"") for one in OutboxHold.objects.all()] == [b"OTHER"]
    assert cause(viewer, request_id) == ("topic-refuses" if reason == "topic" else "held-for-key")


def test_held_by_its_topic(viewer: Client, request_id: UUID) -> None:
    publish_all()
    hold("topic", "topic x does not exist: run create_topics")
    assert cause(viewer, request_id) == "relay-down"
    have_a_relay()
    assert cause(viewer, request_id) == "topic-missing"
    HeldMessage.objects.update(last_error="topic x has 1 in-sync replicas and min.insync.replicas is 2")
    assert cause(viewer, request_id) == "topic-refuses"
    assert "min.insync.replicas is 2" in page(viewer, request_id)


def test_to_be_sent_again(viewer: Client, request_id: UUID) -> None:
    publish_all()
    have_a_relay()
    hold("again")
    age(30)
    assert cause(viewer, request_id) == "sent-again"


def consumer(state: str = "ok", lag: int = 0, **fields: Any) -> ProcessHeartbeat:
    """An issuer that has the partition of the requests for SUMMER."""
    partition = partition_of(b"SUMMER", settings.KAFKA_ROUTES["coupon.issue.requested.v1"].partitions)
    held = HeldPartition(
        group="issue",
        topic=prefixed(TOPIC),
        partition=partition,
        next_offset=5,
        end_offset=5 + lag,
        lag=lag,
        lag_ms=0,
        state=state,
        state_seconds=7.0,
    )
    return have_a_process(groups=["issue"], partitions=[msgspec.to_builtins(held)], **fields)


def test_without_an_issuer(viewer: Client, request_id: UUID) -> None:
    publish_all()
    have_a_process("other", groups=["results"])
    assert cause(viewer, request_id) == "group-down"
    consumer(started_at=Now() - timedelta(hours=1), seen_at=Now() - timedelta(minutes=5))
    assert cause(viewer, request_id) == "group-down"
    assert "consumer on node-1 (pid 42), was seen" in page(viewer, request_id)


def test_no_issuer_has_its_partition(viewer: Client, request_id: UUID) -> None:
    publish_all()
    have_a_process(groups=["issue"])
    assert cause(viewer, request_id) is None
    age(30)
    assert cause(viewer, request_id) == "partition-free"


def test_an_issuer_that_hangs(viewer: Client, request_id: UUID) -> None:
    publish_all()
    consumer(turned_at="2020-01-01T00:00:00Z")
    assert cause(viewer, request_id) == "consumer-hangs"
    assert "kill -KILL 42" in page(viewer, request_id)


def test_an_issuer_that_tries_again(viewer: Client, request_id: UUID) -> None:
    publish_all()
    consumer("retrying")
    assert cause(viewer, request_id) == "retrying"
    summary = "issue has waited at x[1]@5 for 6 minutes: no such column"
    Alert.objects.create(rule="waiting-issue", severity="critical", summary=summary, runbook="")
    assert "no such column" in page(viewer, request_id)


def test_an_issuer_that_is_behind(viewer: Client, request_id: UUID) -> None:
    publish_all()
    consumer(lag=1234)
    assert cause(viewer, request_id) is None
    age(30)
    assert cause(viewer, request_id) == "behind"
    assert "1234 messages behind" in page(viewer, request_id)


def test_paused_by_an_operator(viewer: Client, request_id: UUID) -> None:
    have_a_relay()
    pause(PauseTarget("relay"), actor="olga", reason="a broker moves")
    assert cause(viewer, request_id) == "paused"
    assert "relay is paused by olga since" in page(viewer, request_id)
    assert "control_group relay resume --reason" in page(viewer, request_id)
    resume(PauseTarget("relay"), actor="olga", reason="")
    publish_all()
    consumer(lag=3)
    partition = partition_of(b"SUMMER", settings.KAFKA_ROUTES["coupon.issue.requested.v1"].partitions)
    pause(PauseTarget("issue", prefixed(TOPIC), partition), actor="olga", reason="wrong terms")
    pause(PauseTarget("issue", prefixed(TOPIC), partition + 1), actor="olga", reason="of no concern")
    assert cause(viewer, request_id) == "paused"
    shown = page(viewer, request_id)
    assert "wrong terms." in shown
    assert f"control_group issue resume --partition {prefixed(TOPIC)}:{partition} --reason" in shown
    resume(PauseTarget("issue", prefixed(TOPIC), partition), actor="olga", reason="")
    # However long the pages took.
    age(0)
    assert cause(viewer, request_id) is None


def test_lost_by_its_topic(viewer: Client, request_id: UUID) -> None:
    publish_all()
    consumer()
    age(30)
    assert cause(viewer, request_id) is None
    age(100)
    assert cause(viewer, request_id) == "lost"
    assert "python manage.py reconcile --repair" in page(viewer, request_id)


def test_a_request_on_a_topic_of_earlier_routes(viewer: Client, request_id: UUID, settings: Any) -> None:
    publish_all()
    route = settings.KAFKA_ROUTES["coupon.issue.requested.v1"]
    settings.KAFKA_ROUTES = settings.KAFKA_ROUTES | {"coupon.issue.requested.v1": replace(route, topic="new-topic")}
    assert cause(viewer, request_id) == "topic-former"
    assert "python manage.py reconcile --repair" in page(viewer, request_id)


def test_a_notice_that_no_group_sends(viewer: Client, request_id: UUID, decide: Decide) -> None:
    decide(request_id)
    assert cause(viewer, request_id) == "relay-down"
    publish_all()
    assert cause(viewer, request_id) == "group-down"
    assert "consume_coupons --group results" in page(viewer, request_id)


def test_leaked_and_stale_reservations(viewer: Client, request_id: UUID, decide: Decide) -> None:
    coupon = CouponFactory.create(admission="reserve")
    leaked = uuid7()
    Reservation.objects.create(request_id=leaked, coupon=coupon, user_id=9, admission="reserve")
    assert cause(viewer, leaked) == "reservation-leaked"
    decide(request_id)
    Reservation.objects.create(request_id=request_id, coupon=coupon, user_id=1, admission="reserve")
    assert cause(viewer, request_id) == "reservation-stale"


def test_the_redis_queue(viewer: Client) -> None:
    RolloutChange.objects.create(flag=RolloutChange.ALL_COUPONS, percent=100)
    request_id = accept(CouponFactory.create(admission="gate"), 1).request_id
    redis = get_redis_connection("default")
    assert cause(viewer, request_id) == "worker-down"
    have_a_process("worker")
    assert cause(viewer, request_id) is None
    age(30)
    assert cause(viewer, request_id) == "queue-waiting"
    redis.delete(QUEUE)
    assert cause(viewer, request_id) == "queue-lost"
    redis.set(QUEUE, "not a list")
    assert cause(viewer, request_id) == "queue-unreadable"


def test_every_cause_has_a_remedy(request_id: UUID) -> None:
    message = outbox_traces([request_id])[request_id]
    for one in (*DeliveryCause, *RequestCause, *OrderCause):
        remedy = remedy_of(Problem(one, "", message, "results", {"pid": "1"}))
        assert remedy.text.endswith((".", ":")), one
        assert not remedy.text.endswith(":") or remedy.command, one
