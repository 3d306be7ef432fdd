"""Replay of one dead letter."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any, NamedTuple

from django.db import connection, transaction
from django.db.models.functions import Now

from common.postgres.lock_limits import limit_lock_waits
from common.processes.lifecycle import StopFlag, first_line
from common.processes.outages import is_transient
from common.throttling import CallPostponed

from ..cloudevents import decode_headers
from ..consuming import inbox
from ..models import DeadLetter
from ..registry import ConsumerGroup, ReceivedMessage, groups


class ReplayResult(StrEnum):
    """What became of a replay."""

    APPLIED = "applied"
    DONE_ALREADY = "done_already"
    FAILED = "failed"
    QUARANTINED = "quarantined"
    UNREPLAYABLE = "unreplayable"


class Replayed(NamedTuple):
    """The result of a replay; ``detail`` is one line for the operator."""

    letter_id: int
    result: ReplayResult
    detail: str


OnClosed = Callable[[Replayed], None]


def received_message(letter: DeadLetter) -> ReceivedMessage:
    """Return the message of a letter, as its group received it."""
    return ReceivedMessage(
        letter.topic,
        letter.partition,
        letter.offset,
        letter.message_timestamp,
        None if letter.key is None else bytes(letter.key),
        None if letter.payload is None else bytes(letter.payload),
        decode_headers(bytes(letter.headers)),
    )


def replay_letter(letter_id: int, stop: StopFlag, on_closed: OnClosed = lambda replayed: None) -> Replayed:
    """Replay a letter; ``on_closed`` runs in the transaction that closes it.

    Raises the error of an unavailable service, and CallPostponed.
    """
    letter = DeadLetter.objects.filter(pk=letter_id).first()
    if letter is None or letter.closed_at is not None:
        return Replayed(letter_id, ReplayResult.DONE_ALREADY, "the letter is closed")
    group = groups().get(letter.consumer_group)
    if group is None:
        return Replayed(letter_id, ReplayResult.UNREPLAYABLE, f"no group {letter.consumer_group} is registered")
    try:
        message = received_message(letter)
        value = group.decode(message)
        if group.call is not None and message.inbox_id not in inbox.handled(group.name, [message.inbox_id]):
            (error,) = group.call([value], stop)
            if error is not None:
                raise error
        with transaction.atomic():
            limit_lock_waits()
            replayed = _close(letter, group, value, message)
            on_closed(replayed)
            return replayed
    except Exception as error:
        if is_transient(error) or isinstance(error, CallPostponed):
            raise
        return Replayed(letter_id, ReplayResult.FAILED, f"{type(error).__name__}: {first_line(error)}")


def replay_in_transaction(letter: DeadLetter) -> Replayed:
    """Replay a letter in the caller's transaction without calls; raises what the handler raises."""
    group = groups().get(letter.consumer_group)
    if group is None:
        return Replayed(letter.pk, ReplayResult.UNREPLAYABLE, f"no group {letter.consumer_group} is registered")
    message = received_message(letter)
    return _close(letter, group, group.decode(message), message)


def _close(letter: DeadLetter, group: ConsumerGroup, value: Any, message: ReceivedMessage) -> Replayed:
    with connection.cursor() as cursor:
        cursor.execute("SELECT closed_at FROM kafka_bridge_deadletter WHERE id = %s FOR UPDATE", [letter.pk])
        (closed_at,) = cursor.fetchone() or (True,)
    if closed_at is not None:
        return Replayed(letter.pk, ReplayResult.DONE_ALREADY, "the letter is closed")
    is_new = not group.inbox or bool(inbox.claim(group.name, [message.inbox_id]))
    if is_new:
        group.handle([value])
    DeadLetter.objects.filter(pk=letter.pk).update(closed_at=Now())
    if is_new:
        return Replayed(letter.pk, ReplayResult.APPLIED, "")
    return Replayed(letter.pk, ReplayResult.DONE_ALREADY, "the group has handled the event")
