"""The messages about coupon requests: their event types, and how they are built and read."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from operator import attrgetter
from typing import NamedTuple
from uuid import UUID

import msgspec
from django.conf import settings

from common.trace_context import new_traceparent
from kafka_bridge.cloudevents import encode_body
from kafka_bridge.errors import PoisonMessage
from kafka_bridge.outbox.writing import Message, OutboxRow, new_event_id
from kafka_bridge.registry import ReceivedMessage, decode_body, traceparent_of
from kafka_bridge.routes import Route

from .admission import ADMISSIONS
from .events import IssueEnded, IssueRequested
from .policy import FAILED, REHEARSAL_PREFIX, SUCCESS, is_rehearsal

ISSUE_REQUESTED = "coupon.issue.requested.v1"
ISSUE_SUCCEEDED = "coupon.issue.succeeded.v1"
ISSUE_FAILED = "coupon.issue.failed.v1"
# Quickly tells that a message is of no rehearsal.
_REHEARSAL = f'"{REHEARSAL_PREFIX}'.encode()
_RESULT_TYPES = {SUCCESS: ISSUE_SUCCEEDED, FAILED: ISSUE_FAILED}


class IssueTask(msgspec.Struct, frozen=True, gc=False):
    """A request read from its topic, with its position (topic, partition, offset) and its time of publishing.

    ``replay_of``: the request that failed, of whose dead letter this is the replay; else None.
    """

    request_id: UUID
    request: IssueRequested
    topic: str
    partition: int
    offset: int
    published_at: datetime | None
    traceparent: str
    replay_of: UUID | None = None


class ResultTask(NamedTuple):
    """A result read from its topic. ``event_id`` is its id in the inbox."""

    event_id: UUID
    result: IssueEnded
    traceparent: str


def message_of(event: IssueRequested, *, traceparent: str = "") -> Message:
    """Build the message of ``event``; its event id is the request's id."""
    assert event.request_id is not None
    return Message(ISSUE_REQUESTED, event, event_id=event.request_id, traceparent=traceparent)


def result_rows(results: Iterable[tuple[IssueEnded, str]]) -> list[OutboxRow]:
    """Build the outbox rows of results, each with its traceparent; an empty one starts a new trace.

    For a whole batch, so that routes and key fields are looked up once and not per result.
    """
    targets = {}
    for status, event_type in _RESULT_TYPES.items():
        route: Route = settings.KAFKA_ROUTES[event_type]
        targets[status] = event_type, route, attrgetter(settings.EVENT_KEY_FIELDS[route.key_field])
    rows = []
    for result, traceparent in results:
        event_type, route, field = targets[result.status]
        key = route.key_of(field(result))
        payload = encode_body(result)
        rows.append(
            OutboxRow(new_event_id(), event_type, route.topic, key, payload, None, traceparent or new_traceparent())
        )
    return rows


class _Owner(msgspec.Struct, rename="camel"):
    """What requests and results have in common."""

    coupon_type: str
    user_id: int | None


_request_decoder = msgspec.json.Decoder(IssueRequested)
_owner_decoder = msgspec.json.Decoder(_Owner)
_result_decoder = msgspec.json.Decoder(IssueEnded)


def read_issue_task(message: ReceivedMessage) -> IssueTask:
    """Read the request in ``message``; without a requestId in the body, ``ce_id`` is its id. Raises PoisonMessage."""
    request = decode_body(message, _request_decoder, ISSUE_REQUESTED)
    if request.coupon_id is None and request.coupon_type is None:
        raise PoisonMessage("neither couponId nor couponType is given")
    if request.admission not in ADMISSIONS:
        raise PoisonMessage(f"admission must be {' or '.join(ADMISSIONS)}")
    request_id = request.request_id or message.event_id
    if request_id is None:
        raise PoisonMessage("neither requestId nor a ce_id that is a UUID is given")
    return IssueTask(
        request_id,
        request,
        message.topic,
        message.partition,
        message.offset,
        message.published_at,
        traceparent_of(message),
    )


def is_counted(message: ReceivedMessage) -> bool:
    """Whether key figures count a request or result: those of rehearsals they do not."""
    if message.value is None or _REHEARSAL not in message.value:
        return True
    try:
        owner = _owner_decoder.decode(message.value)
    except msgspec.MsgspecError:
        return True
    return not is_rehearsal(owner.coupon_type, owner.user_id)


def read_result_task(message: ReceivedMessage) -> ResultTask:
    """Read the result in ``message``. Raises PoisonMessage."""
    result = decode_body(message, _result_decoder, "result")
    return ResultTask(message.inbox_id, result, traceparent_of(message))
