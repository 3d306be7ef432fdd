"""Rate of issuing one hot coupon: the consumer's batches against one ORM transaction per message."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import count

from common.postgres.clock import isoformat_z
from common.processes.lifecycle import StopFlag
from common.trace_context import new_traceparent
from coupons.consumer_groups import ISSUE
from coupons.events import IssueRequested
from coupons.messages import ISSUE_REQUESTED, message_of
from coupons.models import Coupon
from kafka_bridge.cloudevents import cloud_event_headers, encode_body
from kafka_bridge.consuming.batch import BatchHandler
from kafka_bridge.outbox.writing import new_event_id
from kafka_bridge.registry import ReceivedMessage

from . import naive
from .interleave import Prepare

BATCH_SIZES = (1000, 500)
ONE_BY_ONE = "one by one"
_BATCHED_MESSAGES = 10_000
_SINGLE_MESSAGES = 300

_numbers = count(1)


def contestants(coupon: Coupon) -> dict[str, Prepare]:
    """Return turns that issue ``coupon``, by name: ``"one by one"``, or the number of messages in a batch."""
    turns: dict[str, Prepare] = {ONE_BY_ONE: partial(_turn, coupon, _SINGLE_MESSAGES, _issue_one_by_one)}
    for size in BATCH_SIZES:
        turns[str(size)] = partial(_turn, coupon, _BATCHED_MESSAGES, partial(_issue_in_batches, size))
    return turns


def _turn(coupon: Coupon, quantity: int, issue: Callable[[Sequence[ReceivedMessage]], None]) -> Callable[[], int]:
    messages = [request_message(coupon) for _ in range(quantity)]
    before = _issued(coupon)

    def work() -> int:
        issue(messages)
        if (issued := _issued(coupon) - before) != quantity:
            raise AssertionError(f"{issued} coupons were issued to {quantity} users")
        return quantity

    return work


def _issued(coupon: Coupon) -> int:
    coupon.refresh_from_db(fields=["issued"])
    return coupon.issued


def _issue_one_by_one(messages: Sequence[ReceivedMessage]) -> None:
    for message in messages:
        naive.issue_one(message)


def _issue_in_batches(size: int, messages: Sequence[ReceivedMessage]) -> None:
    handler, stop = BatchHandler(ISSUE), StopFlag()
    for start in range(0, len(messages), size):
        handler.handle(messages[start : start + size], stop)


def request_message(coupon: Coupon) -> ReceivedMessage:
    """Return a request of a new user, as the consumer receives it."""
    number = next(_numbers)
    now = datetime.now(UTC)
    request = IssueRequested(
        request_id=new_event_id(),
        user_id=number,
        coupon_id=coupon.id,
        coupon_type=coupon.coupon_type,
        requested_at=now,
    )
    message = message_of(request, traceparent=new_traceparent())
    headers = cloud_event_headers(
        event_id=str(message.event_id),
        event_type=ISSUE_REQUESTED,
        time=isoformat_z(now),
        traceparent=message.traceparent,
    )
    return ReceivedMessage(
        topic="coupon-issue-request",
        partition=0,
        offset=number,
        timestamp=int(now.timestamp() * 1000),
        key=coupon.coupon_type.encode(),
        value=encode_body(message.body),
        headers=tuple((name, value.encode() if isinstance(value, str) else value) for name, value in headers),
    )
