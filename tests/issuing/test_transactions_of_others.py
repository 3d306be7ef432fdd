"""Producers with transactions on the topic of requests: lost requests are found beside their markers."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from io import StringIO

import pytest
from confluent_kafka import Producer
from django.core.management import CommandError, call_command
from django.db.models.functions import Now
from pytest_django import Settings

from common.processes.outages import ServiceUnavailable
from coupons import invariants
from coupons.consumer_groups import ISSUE
from coupons.issuance.accept import request_accept
from coupons.models import Coupon, IssueRequest, UserCoupon
from kafka_bridge.client import group_lag
from kafka_bridge.models import OutboxMessage
from kafka_bridge.registry import prefixed
from tests.support.kafka import consume_everything, produce, relay_everything, transactional_producer
from tests.support.messages import request_body

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("topics", "redis_flushed")]

MakeCoupon = Callable[..., Coupon]
TOPIC = "coupon-issue-request"
KEY = b"A"


@pytest.fixture(autouse=True)
def _short_pauses(settings: Settings) -> None:
    settings.CONSUMER_BACKOFF_SECONDS = 0.05


@pytest.fixture
def others(topics: str) -> Producer:
    """A transactional producer of others that has begun a transaction."""
    producer = transactional_producer()
    producer.begin_transaction()
    return producer


def body(coupon: Coupon, user_id: int) -> bytes:
    return json.dumps(request_body(coupon, user_id)).encode()


def write(producer: Producer, value: bytes, key: bytes = KEY) -> None:
    """Write a message that stays within the producer's transaction."""
    producer.produce(prefixed(TOPIC), value, key)
    assert producer.flush(30) == 0


def lag() -> int:
    return group_lag(ISSUE.group_id, ISSUE.topics)


def winners() -> list[int]:
    return sorted(UserCoupon.objects.values_list("user_id", flat=True))


def lose_a_request(coupon: Coupon, user_id: int) -> OutboxMessage:
    """A request that was accepted and published long ago, and that the topic does not have."""
    accepted = request_accept(id_or_type=coupon.id, user_id=user_id, caller_id=user_id)
    ago = Now() - timedelta(minutes=10)
    OutboxMessage.objects.filter(event_id=accepted.request_id).update(created_at=ago, published_at=ago)
    return OutboxMessage.objects.get(event_id=accepted.request_id)


def report(*arguments: str) -> str:
    """What a command prints, and what it complains about in the end."""
    out = StringIO()
    try:
        call_command(*arguments, stdout=out)
    except CommandError as error:
        return f"{out.getvalue()}exit 1: {error}"
    return out.getvalue()


@pytest.mark.parametrize("end", ["commit_transaction", "abort_transaction"])
def test_a_lost_request_is_found_and_repaired_beside_a_marker(
    end: str, make_coupon: MakeCoupon, others: Producer
) -> None:
    coupon = make_coupon()
    lost = lose_a_request(coupon, 1)
    write(others, body(coupon, 2))
    getattr(others, end)(30)
    consume_everything(ISSUE)
    relay_everything()
    assert invariants.overdue_requests() == [str(lost.event_id)]
    assert "published-undecided: 1 " in report("reconcile", "--repair")
    assert relay_everything() == 1
    consume_everything(ISSUE)
    assert IssueRequest.objects.get(request_id=lost.event_id).status == "SUCCESS"
    assert (invariants.overdue_requests(), lag()) == ([], 0)


def test_an_open_transaction_is_named_and_nothing_behind_it_taken_for_lost(
    make_coupon: MakeCoupon, others: Producer
) -> None:
    coupon = make_coupon()
    write(others, body(coupon, 1))
    held_back = lose_a_request(coupon, 2)
    produce(TOPIC, [bytes(held_back.payload or b"")], key=KEY)
    consume_everything(ISSUE)
    name = f"an open transaction of another producer on topic {prefixed(TOPIC)} partition "
    with pytest.raises(ServiceUnavailable, match=name):
        lag()
    for command in (("reconcile", "--repair"), ("check_invariants",)):
        said = report(*command)
        assert name in said
        assert " from offset 0 holds back the messages behind it" in said
    held_back.refresh_from_db()
    assert held_back.published_at is not None

    others.abort_transaction(30)
    consume_everything(ISSUE)
    assert (winners(), lag()) == ([2], 0)
    assert "an open transaction" not in report("reconcile", "--repair") + report("check_invariants")
