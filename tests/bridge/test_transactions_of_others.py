"""Producers with transactions on our topics: their markers are no lag, and an open transaction is named."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from io import StringIO

import pytest
from confluent_kafka import Producer
from django.core.management import CommandError, call_command
from django.db import OperationalError
from django.db.models.functions import Now
from prometheus_client import REGISTRY
from pytest_django import Settings

from common.processes.lifecycle import StopFlag
from common.processes.outages import ServiceUnavailable
from coupons import invariants
from coupons.consumer_groups import ISSUE
from coupons.issuance.accept import request_accept
from coupons.messages import IssueTask
from coupons.models import Coupon, IssueRequest, UserCoupon
from devstack import wait_until
from kafka_bridge.client import group_lag
from kafka_bridge.consuming.consumer import GroupConsumer
from kafka_bridge.models import OutboxMessage
from kafka_bridge.registry import ConsumerGroup, prefixed
from tests.support.kafka import (
    committed_offsets,
    consume_everything,
    produce,
    relay_everything,
    transactional_producer,
)
from tests.support.messages import request_body
from tests.support.threads import in_another_session

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("topics", "redis_flushed")]

MakeCoupon = Callable[..., Coupon]
TOPIC = "coupon-issue-request"
# Keys of two partitions.
KEY, OTHER_KEY = b"A", b"B"


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


@contextmanager
def running(group: ConsumerGroup) -> Iterator[None]:
    """A consumer of the group in the background."""
    stop = StopFlag()
    consumer = in_another_session(lambda: GroupConsumer(group).run(stop))
    try:
        yield
    finally:
        stop.request()
        consumer.result(30)


# Markers


def test_the_marker_of_a_committed_transaction_is_no_lag(make_coupon: MakeCoupon, others: Producer) -> None:
    write(others, body(make_coupon(), 1))
    others.commit_transaction(30)
    consume_everything(ISSUE)
    assert (winners(), lag()) == ([1], 0)


def test_an_aborted_transaction_is_no_lag_and_issues_nothing(make_coupon: MakeCoupon, others: Producer) -> None:
    write(others, body(make_coupon(), 1))
    others.abort_transaction(30)
    consume_everything(ISSUE)
    assert (winners(), lag()) == ([], 0)


def test_markers_behind_a_consumer_that_has_nothing_to_do_are_no_lag(make_coupon: MakeCoupon, others: Producer) -> None:
    coupon = make_coupon()
    with running(ISSUE):
        for user_id, end in enumerate(("commit_transaction", "abort_transaction", "commit_transaction"), 1):
            write(others, body(coupon, user_id))
            getattr(others, end)(30)
            wait_until(lambda: lag() == 0, 30, "the marker counts as lag")
            others.begin_transaction()
        offsets = committed_offsets(ISSUE.group_id, TOPIC)
        (partition,) = (number for number, offset in offsets.items() if offset == 6)
        labels = {"group": "issue", "topic": prefixed(TOPIC), "partition": str(partition)}
        wait_until(
            lambda: REGISTRY.get_sample_value("consumer_lag_messages", labels) == 0, 30, "the gauge counts the marker"
        )
    assert winners() == [1, 3]


# What is in hand


def commit_an_end_while_another_partition_retries(coupon: Coupon, others: Producer) -> list[int]:
    """Returns the offsets committed then; the consumer that had two messages in hand is gone."""
    produce(TOPIC, [body(coupon, 1), body(coupon, 2)], key=KEY)
    tries: list[int] = []

    def fail(tasks: Sequence[IssueTask]) -> None:
        tries.append(len(tasks))
        raise OperationalError("the server is away")

    with running(replace(ISSUE, handle=fail)):
        wait_until(lambda: len(tries) >= 3, 30, "the batch is not tried again")
        for user_id in (3, 4):
            write(others, body(coupon, user_id), OTHER_KEY)
        others.abort_transaction(30)
        # Two messages and a marker.
        wait_until(lambda: 3 in committed_offsets(ISSUE.group_id, TOPIC).values(), 30, "the end is not committed")
    return sorted(committed_offsets(ISSUE.group_id, TOPIC).values())


def test_no_offset_moves_past_messages_in_hand(make_coupon: MakeCoupon, others: Producer) -> None:
    assert commit_an_end_while_another_partition_retries(make_coupon(), others) == [0, 0, 0, 0, 3]
    consume_everything(ISSUE)
    assert (winners(), lag()) == ([1, 2], 0)


def test_if_what_is_in_hand_did_not_count_messages_would_be_lost(
    make_coupon: MakeCoupon, others: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(GroupConsumer, "_has_buffered", lambda *args: False)
        assert commit_an_end_while_another_partition_retries(make_coupon(), others) == [0, 0, 0, 2, 3]
    consume_everything(ISSUE)
    assert (winners(), lag()) == ([], 0)


# What is judged by the lag


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


def test_what_can_be_read_before_an_open_transaction_is_lag(make_coupon: MakeCoupon, others: Producer) -> None:
    coupon = make_coupon()
    produce(TOPIC, [body(coupon, 1)], key=OTHER_KEY)
    write(others, body(coupon, 2))
    assert lag() == 1
    others.abort_transaction(30)
