"""The way of one request through the service, and why it is where it is.

PostgreSQL is read by indexes, in a bounded number of queries. Redis is asked for what only it has, and may be away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from uuid import UUID

import msgspec
from django.conf import settings
from django.db import connection
from redis.exceptions import RedisError

from common.processes.lifecycle import first_line
from kafka_bridge.consuming.dead_letters import RELAY
from kafka_bridge.models import DeadLetter
from kafka_bridge.operating.delivery import (
    ON_ITS_WAY_SECONDS,
    Delivery,
    DeliveryCause,
    Problem,
    Surroundings,
    dead_letters_at,
    dead_letters_of,
    deliveries,
    paused_problem,
    publishing_problem,
    read_surroundings,
    reading_problem,
)
from kafka_bridge.outbox.event_search import event_written_at
from kafka_bridge.outbox.message_trace import OutboxTrace, outbox_traces

from . import policy
from .admission.gate.store import GateEntry, GateStore
from .consumer_groups import ISSUE, RESULTS
from .events import IssueRequested
from .issuance import status_cache
from .issuance.fail_orphaned import NO_TOPIC
from .issuance.status_cache import RequestStatus
from .messages import ISSUE_FAILED, ISSUE_SUCCEEDED
from .models import IssueRequest, Notification, Reservation, UserCoupon
from .redis_queue import TRANSPORT, queue
from .redis_queue.queue import QueuePlace

# PostgreSQL does not tell for which rows a session waits: the text of its statement does. An issuer waits only two of
# twelve seconds, so without one that waits the oldest session with a lock of the table's rows is taken.
_LONG_SECONDS = 5.0
_BLOCKER = """
    SELECT pid, application_name, seconds FROM (
        SELECT holder.pid, holder.application_name, true AS is_awaited,
               extract(epoch FROM statement_timestamp() - holder.xact_start)::float AS seconds
        FROM pg_stat_activity AS waiting
             CROSS JOIN LATERAL unnest(pg_blocking_pids(waiting.pid)) AS blocking (pid)
             JOIN pg_stat_activity AS holder ON holder.pid = blocking.pid
        WHERE waiting.datname = current_database() AND waiting.wait_event_type = 'Lock'
          AND waiting.application_name = ANY(%(issuers)s) AND position('coupons_coupon' IN waiting.query) > 0
          AND holder.wait_event_type IS DISTINCT FROM 'Lock'
        UNION ALL
        SELECT holder.pid, holder.application_name, false,
               extract(epoch FROM statement_timestamp() - holder.xact_start)::float
        FROM pg_locks AS lock JOIN pg_stat_activity AS holder ON holder.pid = lock.pid
        WHERE lock.relation = 'coupons_coupon'::regclass AND lock.locktype = 'relation' AND lock.granted
          AND lock.mode <> 'AccessShareLock' AND holder.datname = current_database()
          AND lock.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    ) AS holding
    WHERE is_awaited OR (%(is_stuck)s AND seconds > %(long)s)
    ORDER BY is_awaited DESC, seconds DESC LIMIT 1
"""
# A consumer that is down or paused waits for no row.
_WAITS_FOR_NO_ROW = (DeliveryCause.PAUSED, DeliveryCause.GROUP_DOWN, DeliveryCause.PARTITION_FREE)
_ISSUERS = ["coupons consume_coupons", "coupons issue_worker"]


class RequestCause(StrEnum):
    """Why a request does not go on, besides the causes of its messages."""

    COUPON_LOCKED = "coupon-locked"
    RESERVATION_LEAKED = "reservation-leaked"
    GATE_LEAKED = "gate-leaked"
    RESERVATION_STALE = "reservation-stale"
    WORKER_DOWN = "worker-down"
    QUEUE_WAITING = "queue-waiting"
    QUEUE_LOST = "queue-lost"
    QUEUE_UNREADABLE = "queue-unreadable"


@dataclass(frozen=True, slots=True)
class RedisCopies:
    """What Redis has of a request. ``error``: why it could not be read, empty if it could.

    ``gate_is_loaded`` None: the request's coupon or user is unknown. ``gate_entry`` is that of its user, whatever
    request it names. ``status`` None: not cached, or unreadable. ``place`` None: the request is not on the Redis queue.
    """

    error: str = ""
    status: RequestStatus | None = None
    gate_is_loaded: bool | None = None
    gate_entry: GateEntry | None = None
    place: QueuePlace | None = None


@dataclass(frozen=True, slots=True)
class RequestTrace:
    """What the service has of one request. ``accepted`` None: its outbox row never was, or was pruned.

    ``result_event`` None: the request is undecided, or the event was pruned or could not be found. ``request`` None:
    the body is unreadable, or gone. ``problem`` None: nothing is wrong.
    """

    request_id: UUID
    accepted: OutboxTrace | None
    request: IssueRequested | None
    reservation: Reservation | None
    result: IssueRequest | None
    user_coupon: UserCoupon | None
    result_event: OutboxTrace | None
    notice: Delivery | None
    notification: Notification | None
    letters: Sequence[DeadLetter]
    redis: RedisCopies
    # The request that the replay of its dead letter opened.
    replayed_as: UUID | None = None
    problem: Problem | None = None
    surroundings: Surroundings = field(default_factory=lambda: Surroundings((), {}))

    @property
    def exists(self) -> bool:
        """Whether anything is known of the request."""
        known = (self.accepted, self.reservation, self.result, self.redis.status)
        return bool(self.letters) or any(item is not None for item in known) or self.is_in_gate

    @property
    def is_in_gate(self) -> bool:
        """Whether its user's entry in the gate names this request."""
        return self.redis.gate_entry is not None and self.redis.gate_entry.request_id == self.request_id

    @property
    def by_worker(self) -> bool:
        """Whether the Redis queue carries it instead of Kafka."""
        return self.accepted is not None and self.accepted.topic == TRANSPORT

    @property
    def user_id(self) -> int | None:
        owners = (self.result, self.reservation, self.request)
        return next((owner.user_id for owner in owners if owner is not None and owner.user_id is not None), None)

    @property
    def coupon_id(self) -> int | None:
        owners = (self.result, self.reservation, self.request)
        return next((owner.coupon_id for owner in owners if owner is not None and owner.coupon_id is not None), None)

    @property
    def coupon_type(self) -> str:
        if self.result is not None and self.result.coupon_type:
            return self.result.coupon_type
        return (self.request.coupon_type if self.request is not None else None) or ""

    @property
    def has_key(self) -> bool:
        """Whether its id was derived from an Idempotency-Key, or by ``issue_batch``."""
        return self.request_id.version == 8


def request_trace(request_id: UUID, *, coupon_id: int | None = None, user_id: int | None = None) -> RequestTrace:
    """Trace a request.

    ``coupon_id`` and ``user_id`` say in whose gate to look where PostgreSQL does not know the request. Must not be
    called inside a transaction: Redis is asked.
    """
    accepted = outbox_traces([request_id]).get(request_id)
    result = IssueRequest.objects.filter(request_id=request_id).first()
    event_id = None if result is None else _result_event_id(result)
    result_event = None if event_id is None else outbox_traces([event_id]).get(event_id)
    surroundings = read_surroundings()
    trace = RequestTrace(
        request_id=request_id,
        accepted=accepted,
        request=_request(accepted),
        reservation=Reservation.objects.filter(request_id=request_id).first(),
        result=result,
        user_coupon=_user_coupon(result),
        result_event=result_event,
        notice=None if result_event is None else _notice(result_event, surroundings),
        notification=None if event_id is None else Notification.objects.filter(event_id=event_id).first(),
        letters=_letters(request_id, result),
        redis=RedisCopies(),
        replayed_as=_replayed_as(result),
        surroundings=surroundings,
    )
    trace = replace(trace, redis=_redis_copies(trace, coupon_id, user_id))
    return replace(trace, problem=_problem(trace))


def user_coupon_request(coupon: UserCoupon) -> UUID | None:
    """Return the request that got ``coupon``, by the event of its result; None if that was pruned or is not found."""
    part = f'"userCouponId":{coupon.id},'.encode()
    event_id = event_written_at(coupon.issued_at, event_types=[ISSUE_SUCCEEDED], part=part)
    event = outbox_traces([event_id]).get(event_id) if event_id is not None else None
    try:
        return None if event is None else msgspec.json.decode(event.payload, type=_Result).request_id
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


class _Result(msgspec.Struct, rename="camel"):
    request_id: UUID


def _replayed_as(result: IssueRequest | None) -> UUID | None:
    if result is None or result.reason != policy.ERROR:
        return None
    return IssueRequest.objects.filter(replay_of=result.request_id).values_list("request_id", flat=True).first()


def _result_event_id(result: IssueRequest) -> UUID | None:
    part = f'"requestId":"{result.request_id}"'.encode()
    return event_written_at(result.processed_at, event_types=[ISSUE_SUCCEEDED, ISSUE_FAILED], part=part)


def _request(accepted: OutboxTrace | None) -> IssueRequested | None:
    try:
        return None if accepted is None else msgspec.json.decode(accepted.payload, type=IssueRequested)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def _user_coupon(result: IssueRequest | None) -> UserCoupon | None:
    if result is None or result.user_coupon_id is None:
        return None
    return UserCoupon.objects.filter(pk=result.user_coupon_id).first()


def _notice(event: OutboxTrace, surroundings: Surroundings) -> Delivery:
    patience = settings.RECONCILE_PATIENCE_SECONDS
    return deliveries(event.event_id, event, [RESULTS], surroundings, lost_after_seconds=patience)[0]


def _letters(request_id: UUID, result: IssueRequest | None) -> list[DeadLetter]:
    """Return its dead letters: by its id, and by its position, since a foreign message may have no readable id."""
    letters = {letter.id: letter for letter in dead_letters_of(request_id)}
    if result is not None and result.offset >= 0 and result.topic != NO_TOPIC:
        found = dead_letters_at([ISSUE.name, RELAY], result.topic, result.partition, result.offset)
        letters |= {letter.id: letter for letter in found}
    return list(letters.values())


def _redis_copies(trace: RequestTrace, coupon_id: int | None, user_id: int | None) -> RedisCopies:
    coupon_id = trace.coupon_id or coupon_id
    user_id = trace.user_id or user_id
    try:
        status = status_cache.read_entries([trace.request_id]).get(trace.request_id)
        is_loaded, entry = None, None
        if coupon_id is not None and user_id is not None:
            gate = GateStore(coupon_id)
            is_loaded = gate.is_loaded()
            entry = next(iter(gate.read([user_id]).entries), None) if is_loaded else None
        place = queue.place_of(trace.request_id) if trace.by_worker and trace.result is None else None
    except RedisError as error:
        return RedisCopies(error=first_line(error))
    return RedisCopies("", status, is_loaded, entry, place)


def _problem(trace: RequestTrace) -> Problem | None:
    if trace.result is not None:
        return _problem_of_decided(trace)
    if trace.accepted is None:
        return _problem_of_unwritten(trace)
    if trace.by_worker:
        return _problem_of_queued(trace, trace.accepted)
    surroundings = trace.surroundings
    if (problem := publishing_problem(trace.accepted, surroundings)) is not None or not trace.accepted.is_published:
        return problem
    problem = reading_problem(
        trace.accepted, ISSUE, surroundings, lost_after_seconds=settings.RECONCILE_PATIENCE_SECONDS
    )
    if problem is not None and problem.cause in _WAITS_FOR_NO_ROW:
        return problem
    return _locked(trace.accepted, is_stuck=problem is not None) or problem


def _problem_of_decided(trace: RequestTrace) -> Problem | None:
    assert trace.result is not None
    if letter := next((letter for letter in trace.letters if letter.closed_at is None), None):
        return Problem(
            DeliveryCause.DEAD_LETTER,
            f"Its message became dead letter {letter.id} of the group {letter.consumer_group} ({letter.error_class});"
            f" the request ended {trace.result.status}, {trace.result.reason}.",
            trace.accepted,
            letter.consumer_group,
        )
    if trace.reservation is not None:
        return Problem(
            RequestCause.RESERVATION_STALE, "The request is decided and its reservation is still there.", trace.accepted
        )
    return None if trace.notice is None else trace.notice.problem


def _problem_of_unwritten(trace: RequestTrace) -> Problem | None:
    if trace.reservation is not None:
        return Problem(
            RequestCause.RESERVATION_LEAKED, "A unit is reserved for it, and it has neither an outbox row nor a result."
        )
    if trace.is_in_gate:
        return Problem(
            RequestCause.GATE_LEAKED,
            "The gate admitted it, and it has neither an outbox row nor a result: its process died before the commit,"
            " or is at it now.",
        )
    return None


def _problem_of_queued(trace: RequestTrace, accepted: OutboxTrace) -> Problem | None:
    if (pause := trace.surroundings.pause(TRANSPORT)) is not None:
        return paused_problem(pause, accepted)
    if trace.redis.error or trace.redis.place is None:
        return Problem(RequestCause.QUEUE_UNREADABLE, f"The Redis queue cannot be read: {trace.redis.error}.", accepted)
    place = trace.redis.place
    if not place.workers and not trace.surroundings.running("worker"):
        return Problem(
            RequestCause.WORKER_DOWN,
            f"No issue worker is running; the Redis queue has {place.length} requests.",
            accepted,
        )
    is_late = accepted.age_seconds > ON_ITS_WAY_SECONDS
    if (problem := _locked(accepted, is_stuck=is_late)) is not None or not is_late:
        return problem
    if place.ahead is not None:
        return Problem(
            RequestCause.QUEUE_WAITING, f"{place.ahead} requests of the Redis queue come before it.", accepted
        )
    if place.claimed:
        state = "is alive" if place.claimer_is_alive else "is dead; another one takes its requests over"
        return Problem(RequestCause.QUEUE_WAITING, f"A worker has claimed it and {state}.", accepted)
    return Problem(RequestCause.QUEUE_LOST, "The Redis queue has lost it.", accepted)


def _locked(message: OutboxTrace, *, is_stuck: bool) -> Problem | None:
    """Return the session that an issuer waits for at a coupon's row, or with ``is_stuck`` probably waits for."""
    with connection.cursor() as cursor:
        cursor.execute(_BLOCKER, {"issuers": _ISSUERS, "is_stuck": is_stuck, "long": _LONG_SECONDS})
        row: tuple[int, str, float | None] | None = cursor.fetchone()
    if row is None:
        return None
    pid, application, seconds = row
    return Problem(
        RequestCause.COUPON_LOCKED,
        f"The issuer waits for a coupon's row: session {pid} ({application or 'without a name'}) has been in a"
        f" transaction with locks of coupons for {seconds or 0:.0f} s.",
        message,
        details={"pid": str(pid)},
    )
