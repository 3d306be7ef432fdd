"""Writes: accepting requests at the door, issuing batches behind it, and making coupons."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
from django.conf import settings
from django.db import DataError, IntegrityError, connection, transaction

from kafka_bridge import arrays
from kafka_bridge.contracts import isoformat_z
from kafka_bridge.errors import PoisonMessage
from kafka_bridge.group_commit import GroupCommit
from kafka_bridge.outbox import (
    OutboxRow,
    insert_new_rows,
    new_event_id,
    outbox_row,
    publish,
    stored_payload,
    stored_payloads,
)
from kafka_bridge.pressure import outbox_pressure
from kafka_bridge.registry import Rejected

from . import metrics, policy, request_log, status_view
from .catalogue import CatalogueEntry, catalogue
from .errors import CouponNotOpen, IdempotencyKeyReused, InvalidRequest, NotFound, Unavailable
from .events import ISSUE_REQUESTED, IssueRequested, IssueTask, issue_ended, issue_requested, read_traceparent
from .models import Coupon, IssueRequest
from .policy import Claim, Decision, Window
from .status_view import RequestStatus

# -- the door -----------------------------------------------------------------------------------------------------

# Seconds after which a client may try again when the outbox is far behind: minutes of backlog do not go in seconds.
_RETRY_WHEN_BEHIND = 30


@dataclass(frozen=True, slots=True)
class Accepted:
    """A request that was taken: it will reach SUCCESS or FAILED under this id."""

    request_id: UUID
    coupon_id: int
    coupon_type: str
    user_id: int
    sequence: int | None = None


def request_accept(
    *,
    id_or_type: int | str,
    user_id: int,
    caller_id: int,
    idempotency_key: str | None = None,
    traceparent: str = "",
    source: str = "API",
) -> Accepted:
    """Accept a request for a coupon (by id or type); its outbox row is all that is written.

    With an idempotency key, the caller's earlier request under it is answered again. Raises NotFound,
    CouponNotOpen, IdempotencyKeyReused, Unavailable, and what the database raises: after a lost connection it is
    unknown whether the request was accepted.
    """
    if behind := outbox_pressure.refusal():
        raise Unavailable(behind, retry_after=_RETRY_WHEN_BEHIND)
    coupon = catalogue.get(id_or_type)
    if coupon is None:
        raise NotFound(f"There is no coupon {id_or_type!r}.")
    moment = catalogue.clock.now()
    refusal = coupon.window.refusal(moment)
    if idempotency_key is None:
        request_id = new_event_id()
    else:
        request_id = derived_request_id(caller_id, "issue", idempotency_key)
        # A key outlives its outbox row; and a repeat is answered even when the coupon has closed since.
        earlier = _ended(request_id) or (_waiting(request_id) if refusal else None)
        if earlier:
            return _repeat(earlier, coupon, user_id)
    if refusal:
        raise CouponNotOpen(refusal)
    event = issue_requested(
        request_id=request_id,
        user_id=user_id,
        coupon_id=coupon.coupon_id,
        coupon_type=coupon.coupon_type,
        requested_at=moment,
        source=source,
        admission=coupon.admission,
        traceparent=traceparent or new_traceparent(),
    )
    if not _acceptances.submit(outbox_row(event)):
        waiting = _waiting(request_id) or _ended(request_id)
        if waiting is None:
            raise RuntimeError(f"the outbox row of {request_id} is neither new nor there")
        return _repeat(waiting, coupon, user_id)
    request_log.tell(
        "request accepted",
        requestId=request_id,
        couponType=coupon.coupon_type,
        userId=user_id,
        traceparent=event.traceparent,
    )
    return Accepted(request_id, coupon.coupon_id, coupon.coupon_type, user_id)


def _insert_acceptances(rows: Sequence[OutboxRow]) -> Sequence[bool]:
    with transaction.atomic():
        return insert_new_rows(rows)


# Requests of the same few milliseconds share one INSERT and one commit; each is answered after that commit.
_acceptances: GroupCommit[OutboxRow, bool] = GroupCommit(_insert_acceptances)


def derived_request_id(caller_id: int, operation: str, idempotency_key: str) -> UUID:
    """The request id of an idempotency key: nobody else's key, and no guess, leads to it."""
    text = f"{caller_id}\n{operation}\n{idempotency_key}".encode()
    digest = bytearray(hmac.digest(settings.SECRET_KEY.encode(), text, hashlib.sha256)[:16])
    digest[6] = digest[6] & 0x0F | 0x80  # version 8: ids of one's own making (RFC 9562)
    digest[8] = digest[8] & 0x3F | 0x80
    return UUID(bytes=bytes(digest))


def new_traceparent() -> str:
    """A new, sampled trace context (W3C Trace Context, version 00)."""
    return f"00-{os.urandom(16).hex()}-{os.urandom(8).hex()}-01"


def _repeat(earlier: Accepted, coupon: CatalogueEntry, user_id: int) -> Accepted:
    if (earlier.coupon_id, earlier.user_id) != (coupon.coupon_id, user_id):
        raise IdempotencyKeyReused("The Idempotency-Key belongs to a request for another coupon or user.")
    return earlier


def _waiting(request_id: UUID) -> Accepted | None:
    payload = stored_payload(ISSUE_REQUESTED, request_id)
    if payload is None:
        return None
    request = msgspec.json.decode(payload, type=IssueRequested)
    assert request.coupon_id is not None
    assert request.coupon_type is not None
    return Accepted(request_id, request.coupon_id, request.coupon_type, request.user_id, request.sequence)


def _ended(request_id: UUID) -> Accepted | None:
    row = IssueRequest.objects.filter(request_id=request_id).first()
    if row is None or row.coupon_id is None or row.user_id is None:
        return None
    return Accepted(request_id, row.coupon_id, row.coupon_type, row.user_id)


# -- the issuer ---------------------------------------------------------------------------------------------------


class _LockedCoupon(NamedTuple):
    id: int
    coupon_type: str
    free: int
    window: Window
    valid_days: int | None


_LOCK_COUPONS = """
    SELECT id, coupon_type, total_quantity - reserved - issued, opens_at, closes_at, valid_days
    FROM coupons_coupon
    WHERE id = ANY(%s) OR coupon_type = ANY(%s)
    ORDER BY id
    FOR NO KEY UPDATE
"""
# A subquery per id, since the planner would rather scan the whole of a table that is not huge yet.
_READ_DECIDED = """
    SELECT id FROM unnest(%s::uuid[]) AS asked (id)
    WHERE (SELECT true FROM coupons_issuerequest WHERE request_id = asked.id)
"""
_READ_HOLDERS = """
    SELECT coupon_id, user_id FROM coupons_usercoupon
    WHERE user_id = ANY(%s::bigint[]) AND coupon_id = ANY(%s::bigint[])
"""
_INSERT_COUPONS = """
    INSERT INTO coupons_usercoupon (coupon_id, user_id, status, issued_at, expires_at)
    SELECT coupon_id, user_id, 'ISSUED', %s, expires_at
    FROM unnest(%s::bigint[], %s::bigint[], %s::timestamptz[]) AS row (coupon_id, user_id, expires_at)
    RETURNING coupon_id, user_id, id
"""
_TAKE_STOCK = """
    UPDATE coupons_coupon SET issued = issued + taken.quantity
    FROM unnest(%s::bigint[], %s::bigint[]) AS taken (id, quantity)
    WHERE coupons_coupon.id = taken.id
"""
_REQUEST_COLUMNS = (
    "request_id, coupon_id, coupon_type, user_id, status, reason, user_coupon_id, source, requested_at,"
    ' processed_at, topic, partition, "offset", remaining'
)
_INSERT_REQUESTS = f"""
    INSERT INTO coupons_issuerequest ({_REQUEST_COLUMNS})
    SELECT * FROM unnest(
        %s::uuid[], %s::bigint[], %s::text[], %s::bigint[], %s::text[], %s::text[], %s::bigint[], %s::text[],
        %s::timestamptz[], %s::timestamptz[], %s::text[], %s::int[], %s::bigint[], %s::bigint[]
    )
"""


def issue_many(tasks: Sequence[IssueTask]) -> None:
    """Decide the requests of one batch in the order given and write everything that follows, set by set.

    Must run inside ``transaction.atomic``. A request that has its answer keeps it. Raises PoisonMessage if a
    request names an id and a type that are not the same coupon's; nothing is written then.
    """
    # The lock is a statement of its own and comes first: one that waited still sees its old snapshot, so whatever
    # the decision needs is read by new statements after it. Every writer of UserCoupon takes this lock.
    coupons = _lock_coupons(tasks)
    now = _database_time()
    claims = _claims(tasks, coupons, now)
    decisions = policy.decide(
        claims,
        free={coupon.id: coupon.free for coupon in coupons},
        decided=_decided([claim.request_id for claim in claims]),
        holders=_holders(claims),
    )
    if not decisions:
        return
    types = {coupon.id: coupon.coupon_type for coupon in coupons}
    expiry = {coupon.id: _expires_at(coupon, now) for coupon in coupons}
    won = [decision.claim for _, decision in decisions if decision.reason is None]
    user_coupon_ids = _insert_coupons(won, expiry, now)
    _take_stock(won)
    _end_requests([_terminal(tasks[index], decision, types, user_coupon_ids, now) for index, decision in decisions])


class _Terminal(NamedTuple):
    """A row of IssueRequest, and what only the event needs. ``requested_at`` is ISO 8601 in UTC."""

    request_id: UUID
    coupon_id: int | None
    coupon_type: str
    user_id: int | None
    status: str
    reason: str | None
    user_coupon_id: int | None
    source: str
    requested_at: str | None
    processed_at: datetime
    topic: str
    partition: int
    offset: int
    remaining: int | None
    traceparent: str


def _lock_coupons(tasks: Sequence[IssueTask]) -> list[_LockedCoupon]:
    ids = {task.request.coupon_id for task in tasks if task.request.coupon_id is not None}
    types = {task.request.coupon_type for task in tasks if task.request.coupon_type is not None}
    with connection.cursor() as cursor:
        cursor.execute(_LOCK_COUPONS, [list(ids), list(types)])
        return [
            _LockedCoupon(coupon_id, coupon_type, free, Window(opens_at, closes_at), valid_days)
            for coupon_id, coupon_type, free, opens_at, closes_at, valid_days in cursor.fetchall()
        ]


def _database_time() -> datetime:
    with connection.cursor() as cursor:
        cursor.execute("SELECT statement_timestamp()")
        (now,) = cursor.fetchone()
    assert isinstance(now, datetime)
    return now


def _claims(tasks: Sequence[IssueTask], coupons: Sequence[_LockedCoupon], now: datetime) -> list[Claim]:
    by_id = {coupon.id: coupon for coupon in coupons}
    by_type = {coupon.coupon_type: coupon for coupon in coupons}
    claims: list[Claim] = []
    outside: list[int] = []
    for index, task in enumerate(tasks):
        request = task.request
        named = [
            by_id.get(request.coupon_id) if request.coupon_id is not None else None,
            by_type.get(request.coupon_type) if request.coupon_type is not None else None,
        ]
        coupon = named[0] or named[1]
        if request.coupon_id is not None and request.coupon_type is not None and named[0] is not named[1]:
            raise PoisonMessage(
                f"couponId {request.coupon_id} and couponType {request.coupon_type!r} are not the same coupon"
            )
        in_window = coupon is None or coupon.window.contains(request.requested_at or now)
        if not in_window:
            outside.append(index)
        claims.append(Claim(task.request_id, request.user_id, coupon.id if coupon else None, in_window))
    if outside:
        # What the door accepted is inside, whatever has become of the coupon since: a refusal is only for requests
        # that others put on the topic.
        accepted = stored_payloads(ISSUE_REQUESTED, [claims[index].request_id for index in outside])
        for index in outside:
            claims[index] = claims[index]._replace(in_window=claims[index].request_id in accepted)
    return claims


def _decided(request_ids: Sequence[UUID]) -> set[UUID]:
    with connection.cursor() as cursor:
        cursor.execute(_READ_DECIDED, [arrays.uuids(request_ids)])
        return {request_id for (request_id,) in cursor.fetchall()}


def _holders(claims: Sequence[Claim]) -> set[tuple[int, int]]:
    users = {claim.user_id for claim in claims}
    coupon_ids = {claim.coupon_id for claim in claims if claim.coupon_id is not None}
    with connection.cursor() as cursor:
        cursor.execute(_READ_HOLDERS, [arrays.numbers(users), arrays.numbers(coupon_ids)])
        return {(coupon_id, user_id) for coupon_id, user_id in cursor.fetchall()}


def _expires_at(coupon: _LockedCoupon, now: datetime) -> str | None:
    return None if coupon.valid_days is None else isoformat_z(now + timedelta(days=coupon.valid_days))


def _insert_coupons(won: Sequence[Claim], expiry: dict[int, str | None], now: datetime) -> dict[tuple[int, int], int]:
    if not won:
        return {}
    coupon_ids = [claim.coupon_id for claim in won if claim.coupon_id is not None]
    with connection.cursor() as cursor:
        cursor.execute(
            _INSERT_COUPONS,
            [
                now,
                arrays.numbers(coupon_ids),
                arrays.numbers([claim.user_id for claim in won]),
                arrays.texts([expiry[coupon_id] for coupon_id in coupon_ids]),
            ],
        )
        return {(coupon_id, user_id): row_id for coupon_id, user_id, row_id in cursor.fetchall()}


def _take_stock(won: Sequence[Claim]) -> None:
    taken = Counter(claim.coupon_id for claim in won)
    if taken:
        with connection.cursor() as cursor:
            cursor.execute(_TAKE_STOCK, [list(taken), list(taken.values())])


def _terminal(
    task: IssueTask,
    decision: Decision,
    types: dict[int, str],
    user_coupon_ids: dict[tuple[int, int], int],
    now: datetime,
) -> _Terminal:
    claim, request = decision.claim, task.request
    user_coupon_id = None
    if decision.reason is None and claim.coupon_id is not None:
        user_coupon_id = user_coupon_ids[claim.coupon_id, claim.user_id]
    return _Terminal(
        request_id=claim.request_id,
        coupon_id=claim.coupon_id,
        coupon_type=request.coupon_type or types.get(claim.coupon_id or 0, ""),
        user_id=claim.user_id,
        status=decision.status,
        reason=decision.reason,
        user_coupon_id=user_coupon_id,
        source=request.source,
        requested_at=isoformat_z(request.requested_at) if request.requested_at else None,
        processed_at=now,
        topic=task.topic,
        partition=task.partition,
        offset=task.offset,
        remaining=decision.remaining,
        traceparent=task.traceparent,
    )


def _end_requests(rows: Sequence[_Terminal]) -> None:
    """Write terminal rows and their events; once that is committed, the status views."""
    columns = [
        arrays.uuids([row.request_id for row in rows]),
        arrays.numbers([row.coupon_id for row in rows]),
        arrays.texts([row.coupon_type for row in rows]),
        arrays.numbers([row.user_id for row in rows]),
        arrays.texts([row.status for row in rows]),
        arrays.texts([row.reason for row in rows]),
        arrays.numbers([row.user_coupon_id for row in rows]),
        arrays.texts([row.source for row in rows]),
        arrays.texts([row.requested_at for row in rows]),
        arrays.texts([isoformat_z(row.processed_at) for row in rows]),
        arrays.texts([row.topic for row in rows]),
        arrays.numbers([row.partition for row in rows]),
        arrays.numbers([row.offset for row in rows]),
        arrays.numbers([row.remaining for row in rows]),
    ]
    with connection.cursor() as cursor:
        cursor.execute(_INSERT_REQUESTS, columns)
    publish(
        issue_ended(
            request_id=row.request_id,
            user_id=row.user_id,
            coupon_id=row.coupon_id,
            coupon_type=row.coupon_type,
            reason=row.reason,
            user_coupon_id=row.user_coupon_id,
            processed_at=row.processed_at,
            traceparent=row.traceparent,
        )
        for row in rows
    )
    transaction.on_commit(partial(_store_views, rows), robust=True)
    transaction.on_commit(partial(_tell, rows), robust=True)


def _tell(rows: Sequence[_Terminal]) -> None:
    """The trail and the figures of decisions that are committed."""
    for (status, reason), number in Counter((row.status, row.reason) for row in rows).items():
        metrics.DECIDED.labels(status, reason or "").inc(number)
    for row in rows:
        if row.requested_at is not None:
            waited = row.processed_at - datetime.fromisoformat(row.requested_at)
            metrics.TIME_TO_RESULT.observe(max(0.0, waited.total_seconds()))
        request_log.tell(
            "request decided",
            requestId=row.request_id,
            couponType=row.coupon_type,
            userId=row.user_id,
            status=row.status,
            reason=row.reason,
            traceparent=row.traceparent,
        )


def _store_views(rows: Sequence[_Terminal]) -> None:
    status_view.store(
        RequestStatus(
            request_id=row.request_id,
            coupon_type=row.coupon_type,
            user_id=row.user_id,
            status=row.status,
            reason=row.reason,
            user_coupon_id=row.user_coupon_id,
            requested_at=row.requested_at,
            processed_at=isoformat_z(row.processed_at),
        )
        for row in rows
    )


# -- dead letters -------------------------------------------------------------------------------------------------


def end_rejected(rejected: Sequence[Rejected]) -> None:
    """End the requests of dead-lettered messages with ERROR, in the transaction that writes the dead letters.

    Messages whose request nobody can name end nothing; a request that has its answer keeps it.
    """
    named = {request_id: item for item in rejected if (request_id := _rejected_request_id(item)) is not None}
    for request_id in _decided(list(named)):
        del named[request_id]
    if not named:
        return
    now = _database_time()
    accepted = stored_payloads(ISSUE_REQUESTED, list(named))
    rows = [_rejected_terminal(id_, item, accepted.get(id_), now) for id_, item in named.items()]
    known = dict(
        Coupon.objects.filter(coupon_type__in={row.coupon_type for row in rows}).values_list("coupon_type", "id")
    )
    _end_requests([row._replace(coupon_id=known.get(row.coupon_type)) for row in rows])


class _Readable(msgspec.Struct, rename="camel"):
    """Whatever can still be read of a message that was rejected."""

    request_id: Any = None
    user_id: Any = None
    coupon_type: Any = None


def _read_leniently(payload: bytes | None) -> _Readable:
    try:
        return msgspec.json.decode(payload or b"{}", type=_Readable)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return _Readable()


def _rejected_request_id(rejected: Rejected) -> UUID | None:
    try:
        return UUID(_read_leniently(rejected.message.value).request_id)
    except (ValueError, TypeError, AttributeError):
        return rejected.message.event_id


def _rejected_terminal(request_id: UUID, rejected: Rejected, accepted: bytes | None, now: datetime) -> _Terminal:
    message = rejected.message
    # What the door accepted is believed before what came back from the topic.
    readable = _read_leniently(accepted or message.value)
    user_id, coupon_type = readable.user_id, readable.coupon_type
    return _Terminal(
        request_id=request_id,
        coupon_id=None,
        coupon_type=coupon_type if isinstance(coupon_type, str) and policy.is_coupon_type(coupon_type) else "",
        user_id=user_id if type(user_id) is int and 0 < user_id < 2**63 else None,
        status=policy.FAILED,
        reason=policy.ERROR,
        user_coupon_id=None,
        source="",
        requested_at=None,
        processed_at=now,
        topic=message.topic,
        partition=message.partition,
        offset=message.offset,
        remaining=None,
        traceparent=read_traceparent(message),
    )


# -- coupons ------------------------------------------------------------------------------------------------------


def coupon_create(**values: Any) -> tuple[Coupon, bool]:
    """Create a coupon of ``values`` (fields of Coupon); the same again changes nothing. Returns (coupon, created).

    Raises InvalidRequest if a coupon of that type exists with other values, or if the values contradict each other.
    """
    existing = Coupon.objects.filter(coupon_type=values["coupon_type"]).first()
    if existing is None:
        try:
            with transaction.atomic():
                return Coupon.objects.create(**values), True
        except (IntegrityError, DataError) as error:
            existing = Coupon.objects.filter(coupon_type=values["coupon_type"]).first()
            if existing is None:
                raise InvalidRequest(f"The coupon is not possible: {str(error).splitlines()[0]}") from error
    differing = sorted(name for name, value in values.items() if getattr(existing, name) != value)
    if differing:
        raise InvalidRequest(
            f"A coupon {existing.coupon_type} exists and differs in {', '.join(differing)}:"
            " take another type, or change it in the admin."
        )
    return existing, False
