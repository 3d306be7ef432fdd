"""The replay of one dead letter: its consumer group handles the stored message again, and the letter is closed.

Without a call, everything happens in one transaction, under the lock of the letter's row. With a call, the letter is
leased, the call is made outside of any transaction under the event id, and then inbox, handler and closing follow in
one transaction. A process that dies in between leaves the lease to expire: the call is made again under the same
idempotency key.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from functools import partial
from typing import Any, NamedTuple
from uuid import UUID, uuid4

from django.conf import settings
from django.db import Error as DatabaseError
from django.db import connection, transaction

from common.postgres.lock_limits import limit_lock_waits
from common.processes.lifecycle import StopFlag, first_line
from common.processes.outages import is_transient
from common.throttling import CallPostponed

from ..consuming import inbox
from ..consuming.dead_letters import FOREIGN, RELAY, describe_error
from ..errors import ReplayPostponed
from ..models import MOST_REPLAYS, DeadLetter
from ..registry import ConsumerGroup, ReceivedMessage, Replay, ReplayedMessage, groups, replay_of_rejected
from .publish_again import publish_again
from .stored_messages import letter_message

logger = logging.getLogger(__name__)

_CLOSE = """
    UPDATE kafka_bridge_deadletter
    SET closed_at = statement_timestamp(), outcome = 'replayed', replays = replays + 1,
        lease_owner = NULL, leased_until = NULL
    WHERE id = %s
"""
_FAIL = """
    UPDATE kafka_bridge_deadletter
    SET replays = replays + 1, last_error = %s, last_seen_at = statement_timestamp(),
        lease_owner = NULL, leased_until = NULL
    WHERE id = %s RETURNING replays
"""
_LEASE = """
    UPDATE kafka_bridge_deadletter
    SET lease_owner = %s, leased_until = statement_timestamp() + %s * interval '1 second'
    WHERE id = %s AND (leased_until IS NULL OR leased_until <= statement_timestamp())
"""
_LEASED_FOR = """
    SELECT greatest(extract(epoch FROM leased_until - statement_timestamp()), 0)::float
    FROM kafka_bridge_deadletter WHERE id = %s
"""
_RELEASE = """
    UPDATE kafka_bridge_deadletter SET lease_owner = NULL, leased_until = NULL WHERE id = %s AND lease_owner = %s
"""


# The kind of the effect of a group with a call.
SENT = "sent"


class ReplayResult(StrEnum):
    """What became of a dead letter."""

    # The handler ran; the letter is closed in the same transaction.
    APPLIED = "applied"
    # It was closed before, or the effect is there: the letter is closed.
    DONE_ALREADY = "done_already"
    # It still fails: the replay is counted, the letter stays open.
    FAILED = "failed"
    # ``MOST_REPLAYS`` replays failed: not tried.
    QUARANTINED = "quarantined"
    # No consumer group of this service can handle it: discard it.
    UNREPLAYABLE = "unreplayable"


class Replayed(NamedTuple):
    """The result of a replay; ``detail`` is one line for the operator, "<kind>: <particulars>" if it is APPLIED."""

    letter_id: int
    result: ReplayResult
    detail: str


class ReplayInterrupted(Exception):
    """The process was asked to stop while the call was made: the letter stays open, and the call may be repeated."""


Recorder = Callable[[Replayed], None]


def _no_record(replayed: Replayed) -> None:
    """Record nothing."""


def replay_letter(letter_id: int, stop: StopFlag, record: Recorder = _no_record) -> Replayed:
    """Handle the message of a dead letter again and close the letter; must not run inside a transaction.

    ``record`` gets the result in the transaction that closes the letter, or that counts the failed replay.
    Concurrent replays of one letter have its effect once: the second waits for the first. Raises the error of an
    unavailable service; CallPostponed (also ReplayPostponed: another replay makes the letter's call) to repeat the
    replay after its ``seconds``; ReplayInterrupted. Neither counts as a failed replay.
    """
    name = DeadLetter.objects.filter(pk=letter_id).values_list("consumer_group", flat=True).first()
    group = groups().get(name or "")
    if group is not None and group.call is not None:
        return _replay_with_call(letter_id, group, stop, record)
    try:
        with _locked(letter_id) as letter:
            return _replay_locked(letter_id, letter, record)
    except Exception as error:
        if is_transient(error) or isinstance(error, CallPostponed):
            raise
        # Only the commit can fail so: by a constraint that is checked there.
        return _record_failure(letter_id, error, record)


def replay_in_transaction(letter: DeadLetter) -> Replayed:
    """Handle the message of ``letter`` again and close it, in the caller's transaction and a savepoint of its own.

    Makes no call: of a group with a call the detail says what is sent. An error of the handler rolls the savepoint back
    and counts as a failed replay. Raises the error of an unavailable service and CallPostponed. The caller holds the
    lock of the row, or rolls everything back.
    """
    if (settled := _settled(letter)) is not None:
        return settled
    try:
        with transaction.atomic():
            replayed = _apply(letter)
            _execute(_CLOSE, [letter.id])
        return replayed
    except Exception as error:
        if is_transient(error) or isinstance(error, CallPostponed):
            raise
        return _failed(letter, error)


def _replay_locked(letter_id: int, letter: DeadLetter | None, record: Recorder) -> Replayed:
    replayed = _deleted(letter_id) if letter is None else replay_in_transaction(letter)
    record(replayed)
    return replayed


def _replay_with_call(letter_id: int, group: ConsumerGroup, stop: StopFlag, record: Recorder) -> Replayed:
    assert group.call is not None
    owner = uuid4()
    with _locked(letter_id) as letter:
        if letter is None:
            return _deleted(letter_id)
        if (settled := _settled(letter)) is not None:
            return settled
        message = letter_message(letter)
        try:
            value = _decoded(group, message)
        except Exception as error:
            if is_transient(error):
                raise
            replayed = _failed(letter, error)
            record(replayed)
            return replayed
        if value is None or inbox.handled(group.name, [message.inbox_id]):
            # Nothing is to be called.
            return _replay_locked(letter_id, letter, record)
        _lease(letter_id, owner)
    with _released_at_the_end(letter_id, owner):
        failure = _call(group, value[0], stop)
        if failure is None:
            # Without a limit of lock waits: the outcome of a call that was made must not be lost to a lock of seconds.
            with transaction.atomic(durable=True):
                return _replay_locked(letter_id, _lock(letter_id), record)
        if stop:
            raise ReplayInterrupted from failure
        return _record_failure(letter_id, failure, record)


def _call(group: ConsumerGroup, value: Any, stop: StopFlag) -> Exception | None:
    """Make the call; returns its error. Raises the error of an unavailable service and CallPostponed."""
    assert group.call is not None
    try:
        (error,) = group.call([value], stop)
    except Exception as raised:
        error = raised
    if error is not None and (is_transient(error) or isinstance(error, CallPostponed)):
        raise error
    return error


def _settled(letter: DeadLetter) -> Replayed | None:
    """Return why the letter is not to be handled, None if it is."""
    if letter.closed_at is not None:
        return Replayed(letter.id, ReplayResult.DONE_ALREADY, f"{letter.state} before")
    if letter.consumer_group == FOREIGN:
        return Replayed(letter.id, ReplayResult.UNREPLAYABLE, "no group of this service wrote it: discard it")
    if letter.consumer_group != RELAY and letter.consumer_group not in groups():
        detail = f"the group {letter.consumer_group} is not registered any more: discard it"
        return Replayed(letter.id, ReplayResult.UNREPLAYABLE, detail)
    if letter.replays >= MOST_REPLAYS:
        last = letter.last_error.partition("\n")[0]
        detail = f"{letter.replays} replays failed, the last with {last}"
        return Replayed(letter.id, ReplayResult.QUARANTINED, detail)
    return None


def _apply(letter: DeadLetter) -> Replayed:
    """Have the effect of the letter's message, in the caller's transaction."""
    message = letter_message(letter)
    if letter.consumer_group == RELAY:
        if (replay := replay_of_rejected(letter.event_type)) is not None:
            return _replay_by(replay, letter, message)
        return Replayed(letter.id, ReplayResult.APPLIED, publish_again(letter))
    group = groups()[letter.consumer_group]
    if group.replay is not None:
        return _replay_by(group.replay, letter, message)
    value = _decoded(group, message)
    if value is None:
        return Replayed(letter.id, ReplayResult.DONE_ALREADY, f"{group.name} does not handle its type any more")
    if group.inbox and not inbox.claim(group.name, [message.inbox_id]):
        return Replayed(letter.id, ReplayResult.DONE_ALREADY, f"{group.name} has handled the event")
    group.handle([value[0]])
    detail = f"handled: event {message.inbox_id}" if group.call is None else f"{SENT}: {group.describe_call(value[0])}"
    return Replayed(letter.id, ReplayResult.APPLIED, detail)


def _replay_by(replay: Replay, letter: DeadLetter, message: ReceivedMessage) -> Replayed:
    detail = replay(ReplayedMessage(message, letter.id, letter.replays + 1))
    if detail is None:
        return Replayed(letter.id, ReplayResult.DONE_ALREADY, "decided otherwise before")
    return Replayed(letter.id, ReplayResult.APPLIED, detail)


def _decoded(group: ConsumerGroup, message: ReceivedMessage) -> tuple[Any] | None:
    """Return the decoded message, None if the group skips it. Raises what the decoder raises."""
    return (group.decode(message),) if group.accepts(message) else None


def _failed(letter: DeadLetter, error: BaseException) -> Replayed:
    """Count a failed replay of a locked letter, in the caller's transaction."""
    with connection.cursor() as cursor:
        cursor.execute(_FAIL, [describe_error(error), letter.id])
        (replays,) = cursor.fetchone() or (0,)
    left = MOST_REPLAYS - replays
    # After the commit: a preview is rolled back.
    log = partial(logger.warning, "dead letter %s failed again, replay %s: %s", letter.id, replays, first_line(error))
    transaction.on_commit(log)
    detail = f"{type(error).__name__}: {first_line(error)}"
    return Replayed(letter.id, ReplayResult.FAILED, detail if left > 0 else f"{detail}; now in quarantine")


def _record_failure(letter_id: int, error: BaseException, record: Recorder) -> Replayed:
    with _locked(letter_id) as letter:
        replayed = _deleted(letter_id) if letter is None else _settled(letter) or _failed(letter, error)
        record(replayed)
        return replayed


def _deleted(letter_id: int) -> Replayed:
    return Replayed(letter_id, ReplayResult.DONE_ALREADY, "deleted after its retention")


@contextmanager
def _locked(letter_id: int) -> Iterator[DeadLetter | None]:
    """A transaction with the letter's row locked; None if there is no such row."""
    with transaction.atomic(durable=True):
        limit_lock_waits()
        yield _lock(letter_id)


def _lock(letter_id: int) -> DeadLetter | None:
    return DeadLetter.objects.select_for_update(no_key=True).filter(pk=letter_id).first()


def _lease(letter_id: int, owner: UUID) -> None:
    """Lease a locked letter. Raises ReplayPostponed while another replay has the lease."""
    with connection.cursor() as cursor:
        cursor.execute(_LEASE, [owner, _lease_seconds(), letter_id])
        if not cursor.rowcount:
            cursor.execute(_LEASED_FOR, [letter_id])
            (seconds,) = cursor.fetchone() or (0.0,)
            raise ReplayPostponed(f"another replay makes the call of dead letter {letter_id}", seconds)


def _lease_seconds() -> float:
    """Longer than a call takes: three tries, their pauses, and the wait for the provider's pace."""
    return 3 * float(settings.HTTP_TIMEOUT_SECONDS) + 20.0


@contextmanager
def _released_at_the_end(letter_id: int, owner: UUID) -> Iterator[None]:
    try:
        yield
    finally:
        # Without the database the lease expires.
        with suppress(DatabaseError):
            _execute(_RELEASE, [letter_id, owner])


def _execute(sql: str, values: list[Any]) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql, values)
