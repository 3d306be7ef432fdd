"""The issuer: decides a batch in message order and writes it with one statement per table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from django.db import connection
from msgspec.structs import replace

from common.postgres import arrays
from common.postgres.clock import database_time, isoformat_z
from kafka_bridge.errors import PoisonMessage
from kafka_bridge.outbox.writing import stored_payloads

from .. import policy
from ..admission import reservations
from ..admission.reservations import Reservation
from ..messages import ISSUE_REQUESTED, IssueTask
from ..policy import Claim, Decision, Window
from .finish import RequestResult, alert_gate_mismatch, find_decided, finish_requests


class _LockedCoupon(NamedTuple):
    id: int
    coupon_type: str
    free: int
    window: Window
    valid_days: int | None
    has_reservations: bool


# Reservations are committed before their messages are published, so this statement sees them in ``EXISTS`` even if it
# waits for the lock with an older snapshot.
_LOCK_COUPONS = """
    SELECT id, coupon_type, total_quantity - reserved - issued, opens_at, closes_at, valid_days,
           EXISTS (SELECT FROM coupons_reservation WHERE coupon_id = coupons_coupon.id)
    FROM coupons_coupon
    WHERE id = ANY(%s) OR coupon_type = ANY(%s)
    ORDER BY id
    FOR NO KEY UPDATE
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
# ``greatest``: a wrong counter must not dead-letter valid requests. The reconciler recounts it.
_MOVE_STOCK = """
    UPDATE coupons_coupon SET issued = issued + moved.won, reserved = greatest(reserved - moved.given, 0)
    FROM unnest(%s::bigint[], %s::bigint[], %s::bigint[]) AS moved (id, won, given)
    WHERE coupons_coupon.id = moved.id
"""


def issue_many(tasks: Sequence[IssueTask]) -> None:
    """Decide the requests of one batch in the order given and write coupons, stock and results.

    Must run inside ``transaction.atomic``. A decided request keeps its result. Raises PoisonMessage if a request names
    a coupon id and a coupon type of different coupons; nothing is written then.
    """
    # The lock is a separate statement and comes first: a statement that waits for a lock still sees its old snapshot,
    # so the data for the decision is read by later statements. Every writer of UserCoupon takes this lock.
    coupons = _lock_coupons(tasks)
    now = database_time()
    reserved = _remove_reservations(tasks, coupons)
    claims = _claims(tasks, coupons, now, reserved)
    decisions = policy.decide(
        claims,
        free={coupon.id: coupon.free for coupon in coupons},
        decided=find_decided([claim.request_id for claim in claims]),
        holders=_holders(claims),
    )
    if not decisions:
        _move_stock([], reserved)
        return
    types = {coupon.id: coupon.coupon_type for coupon in coupons}
    expiry = {coupon.id: _expires_at(coupon, now) for coupon in coupons}
    winners = [decision.claim for _, decision in decisions if decision.reason is None]
    user_coupon_ids = _insert_coupons(winners, expiry, now)
    _move_stock(winners, reserved)
    # The gate admits only requests it has stock for, unless Redis lost reservations that were being written.
    alert_gate_mismatch(
        {decision.claim.request_id for _, decision in decisions if decision.reason == policy.SOLD_OUT}, reserved
    )
    finish_requests([_result(tasks[index], decision, types, user_coupon_ids) for index, decision in decisions], now)


def _lock_coupons(tasks: Sequence[IssueTask]) -> list[_LockedCoupon]:
    ids = {task.request.coupon_id for task in tasks if task.request.coupon_id is not None}
    types = {task.request.coupon_type for task in tasks if task.request.coupon_type is not None}
    with connection.cursor() as cursor:
        cursor.execute(_LOCK_COUPONS, [list(ids), list(types)])
        return [
            _LockedCoupon(coupon_id, coupon_type, free, Window(opens_at, closes_at), valid_days, has_reservations)
            for coupon_id, coupon_type, free, opens_at, closes_at, valid_days, has_reservations in cursor.fetchall()
        ]


def _remove_reservations(tasks: Sequence[IssueTask], coupons: Sequence[_LockedCoupon]) -> list[Reservation]:
    """Delete and return the reservations of these requests. Our rows count, not what their messages claim."""
    if not any(coupon.has_reservations for coupon in coupons):
        return []
    return reservations.remove({task.request_id for task in tasks}, of=[coupon.id for coupon in coupons])


def _claims(
    tasks: Sequence[IssueTask], coupons: Sequence[_LockedCoupon], now: datetime, reserved: Sequence[Reservation]
) -> list[Claim]:
    by_name = _by_name(tasks, coupons)
    holding_stock = {(item.request_id, item.coupon_id, item.user_id) for item in reserved if item.holds_stock}
    claims: list[Claim] = []
    outside_window: list[int] = []
    for index, task in enumerate(tasks):
        request = task.request
        coupon = by_name[request.coupon_id, request.coupon_type]
        in_window = coupon is None or coupon.window.contains(request.requested_at or now)
        if not in_window:
            outside_window.append(index)
        coupon_id = coupon.id if coupon else None
        holds_stock = bool(holding_stock) and (task.request_id, coupon_id, request.user_id) in holding_stock
        claims.append(Claim(task.request_id, request.user_id, coupon_id, in_window, holds_stock))
    if outside_window:
        # A request that the accept API accepted was inside the window, even if the window has changed since. Only
        # messages of other producers are refused.
        first_ids = {index: tasks[index].replay_of or tasks[index].request_id for index in outside_window}
        accepted = stored_payloads(ISSUE_REQUESTED, list(first_ids.values()))
        for index, request_id in first_ids.items():
            claims[index] = replace(claims[index], in_window=request_id in accepted)
    return claims


def _by_name(
    tasks: Sequence[IssueTask], coupons: Sequence[_LockedCoupon]
) -> dict[tuple[int | None, str | None], _LockedCoupon | None]:
    """Return the coupon by the id and type that a request names, None if there is none."""
    by_id = {coupon.id: coupon for coupon in coupons}
    by_type = {coupon.coupon_type: coupon for coupon in coupons}
    found: dict[tuple[int | None, str | None], _LockedCoupon | None] = {}
    for coupon_id, coupon_type in {(task.request.coupon_id, task.request.coupon_type) for task in tasks}:
        of_id = by_id.get(coupon_id) if coupon_id is not None else None
        of_type = by_type.get(coupon_type) if coupon_type is not None else None
        if coupon_id is not None and coupon_type is not None and of_id is not of_type:
            raise PoisonMessage(f"couponId {coupon_id} and couponType {coupon_type!r} are not the same coupon")
        found[coupon_id, coupon_type] = of_id or of_type
    return found


def _holders(claims: Sequence[Claim]) -> set[tuple[int, int]]:
    users = {claim.user_id for claim in claims}
    coupon_ids = {claim.coupon_id for claim in claims if claim.coupon_id is not None}
    with connection.cursor() as cursor:
        cursor.execute(_READ_HOLDERS, [arrays.numbers(users), arrays.numbers(coupon_ids)])
        return {(coupon_id, user_id) for coupon_id, user_id in cursor.fetchall()}


def _expires_at(coupon: _LockedCoupon, now: datetime) -> str | None:
    return None if coupon.valid_days is None else isoformat_z(now + timedelta(days=coupon.valid_days))


def _insert_coupons(
    winners: Sequence[Claim], expiry: dict[int, str | None], now: datetime
) -> dict[tuple[int, int], int]:
    if not winners:
        return {}
    coupon_ids = [claim.coupon_id for claim in winners if claim.coupon_id is not None]
    with connection.cursor() as cursor:
        cursor.execute(
            _INSERT_COUPONS,
            [
                now,
                arrays.numbers(coupon_ids),
                arrays.numbers([claim.user_id for claim in winners]),
                arrays.texts([expiry[coupon_id] for coupon_id in coupon_ids]),
            ],
        )
        return {(coupon_id, user_id): row_id for coupon_id, user_id, row_id in cursor.fetchall()}


def _move_stock(winners: Sequence[Claim], reserved: Sequence[Reservation]) -> None:
    issued_by_coupon = Counter(claim.coupon_id for claim in winners if claim.coupon_id is not None)
    released_by_coupon = Counter(item.coupon_id for item in reserved if item.holds_stock)
    moved = list({*issued_by_coupon, *released_by_coupon})
    if moved:
        with connection.cursor() as cursor:
            cursor.execute(
                _MOVE_STOCK,
                [moved, [issued_by_coupon[id_] for id_ in moved], [released_by_coupon[id_] for id_ in moved]],
            )


def _result(
    task: IssueTask, decision: Decision, types: dict[int, str], user_coupon_ids: dict[tuple[int, int], int]
) -> RequestResult:
    claim, request = decision.claim, task.request
    user_coupon_id = None
    if decision.reason is None and claim.coupon_id is not None:
        user_coupon_id = user_coupon_ids[claim.coupon_id, claim.user_id]
    return RequestResult(
        request_id=claim.request_id,
        coupon_id=claim.coupon_id,
        coupon_type=request.coupon_type or types.get(claim.coupon_id or 0, ""),
        user_id=claim.user_id,
        status=decision.status,
        reason=decision.reason,
        user_coupon_id=user_coupon_id,
        source=request.source,
        requested_at=isoformat_z(request.requested_at) if request.requested_at else None,
        topic=task.topic,
        partition=task.partition,
        offset=task.offset,
        remaining=decision.remaining,
        published_at=isoformat_z(task.published_at) if task.published_at else None,
        traceparent=task.traceparent,
        replay_of=task.replay_of,
    )
