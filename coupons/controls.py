"""An operator's controls of a coupon: create, open, pause, resume, close, restock.

Each control but a creation has an id and is recorded in the transaction of its change, under the lock that the issuer
takes. Repeating an id changes nothing and is no error, whatever happened to the coupon since: an operator who does not
know whether a control was applied repeats it. The accept API follows a change within a second.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import DataError, IntegrityError, connection, transaction

from common.api.errors import InvalidRequest, NotFound
from common.bigint import MAX_BIGINT
from common.postgres.clock import database_time, isoformat_z
from kafka_bridge.operating.audit import record_action
from kafka_bridge.outbox.writing import new_event_id

from .models import Coupon, CouponControl
from .policy import REHEARSAL_PREFIX

Action = CouponControl.Action

_MAX_LENGTHS = {"reason": 500, "actor": 150}

# A concurrent control with the same id waits here until the first transaction has finished.
_INSERT_NEW = """
    INSERT INTO coupons_couponcontrol (id, coupon_id, action, quantity, reason, actor)
    VALUES (%s, %s, %s, %s, %s, %s)
    ON CONFLICT (id) DO NOTHING
"""


def coupon_control(
    *,
    action: Action,
    id_or_type: int | str,
    actor: str,
    quantity: int = 0,
    control_id: UUID | None = None,
    reason: str = "",
) -> Coupon:
    """Apply a control to a coupon and return the coupon.

    OPEN ends a pause, moves a future opening time to now and removes a past closing time; a closing time in the future
    stays. PAUSE refuses new requests until RESUME; a coupon that is not open yet stays paused at its opening time.
    CLOSE refuses new requests from now on; a coupon that is not open yet will not open. RESTOCK adds ``quantity`` units
    (1 or more) in any state and does not open the coupon; a request with the result SOLD_OUT keeps it. Accepted
    requests are decided in any case, and a control that is in effect already changes nothing.

    ``actor`` is the operator's name; ``control_id`` None takes a new id. Raises NotFound, and InvalidRequest if the id
    was used for another control, for PAUSE and RESUME of a closed coupon, or for too few or too many units.
    """
    _check_text("reason", reason)
    _check_text("actor", actor)
    if action == Action.RESTOCK and quantity < 1:
        raise InvalidRequest("A restock adds 1 or more; to reduce the stock, change the quantity in the admin.")
    if quantity > MAX_BIGINT:
        raise InvalidRequest(f"A coupon has at most {MAX_BIGINT} units.")
    with transaction.atomic():
        coupon = _locked(id_or_type)
        if _is_new(control_id or new_event_id(), coupon, action, quantity or None, reason, actor):
            # Read after the lock, in a statement of its own: a time read before the wait would be in the past.
            changes = _changes(action, coupon, quantity, database_time())
            before = recorded_values(coupon, changes)
            if changes:
                Coupon.objects.filter(id=coupon.id).update(**changes)
                coupon.refresh_from_db()
            record_change(
                f"coupon.{action}", coupon, actor=actor, reason=reason,
                before=before, after=recorded_values(coupon, changes),
            )  # fmt: skip
    return coupon


def recorded_values(coupon: Coupon, names: Iterable[str]) -> dict[str, Any]:
    """Return the fields ``names`` of a coupon as the audit trail has them, times in ISO 8601 with Z."""
    values = {name: getattr(coupon, name) for name in names}
    return {name: isoformat_z(value) if isinstance(value, datetime) else value for name, value in values.items()}


def record_change(
    action: str, coupon: Coupon, *, actor: str, reason: str = "", before: dict[str, Any] | None, after: dict[str, Any]
) -> None:
    """Record an operator's action on a coupon in the caller's transaction, with the values that differ.

    ``before`` None: the coupon is new.
    """
    if before is not None:
        after = {name: value for name, value in after.items() if value != before[name]}
        before = {name: before[name] for name in after}
    record_action(
        actor=actor, action=action, subject=f"coupon {coupon.coupon_type}", reason=reason,
        before=before or None, after=after or None,
    )  # fmt: skip


def _changes(action: Action, coupon: Coupon, quantity: int, now: datetime) -> dict[str, Any]:
    """Return the fields of the locked coupon to change. Raises InvalidRequest to refuse the control."""
    is_closed = coupon.window.state(now, coupon.remaining) == "CLOSED"
    match action:
        case Action.OPEN:
            # A past opening time stays: the issuer compares it with the time at which each accepted request was made.
            opens_at = min(coupon.opens_at, now)
            return {"opens_at": opens_at, "closes_at": None if is_closed else coupon.closes_at, "paused": False}
        case Action.PAUSE:
            if is_closed:
                raise InvalidRequest(f"Coupon {coupon.coupon_type} is closed: it cannot be paused.")
            return {"paused": True}
        case Action.RESUME:
            if is_closed:
                raise InvalidRequest(f"Coupon {coupon.coupon_type} is closed, not paused: open it instead.")
            return {"paused": False}
        case Action.CLOSE:
            return {} if is_closed else {"opens_at": min(coupon.opens_at, now), "closes_at": now}
        case Action.RESTOCK:
            if coupon.total_quantity + quantity > MAX_BIGINT:
                raise InvalidRequest(f"A coupon has at most {MAX_BIGINT} units.")
            return {"total_quantity": coupon.total_quantity + quantity}


def _check_text(name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"The {name} is not valid Unicode.") from error
    if len(text) > _MAX_LENGTHS[name] or "\0" in text:
        raise InvalidRequest(f"The {name} is at most {_MAX_LENGTHS[name]} characters, without NUL.")


def _locked(id_or_type: int | str) -> Coupon:
    field = "id" if isinstance(id_or_type, int) else "coupon_type"
    coupon = Coupon.objects.select_for_update(no_key=True).filter(rehearsal=False, **{field: id_or_type}).first()
    if coupon is None:
        raise NotFound(f"There is no coupon {id_or_type!r}.")
    return coupon


def _is_new(control_id: UUID, coupon: Coupon, action: Action, quantity: int | None, reason: str, actor: str) -> bool:
    """Record the control; False if it was applied before. Raises InvalidRequest if another control has its id."""
    with connection.cursor() as cursor:
        cursor.execute(_INSERT_NEW, [control_id, coupon.id, action.value, quantity, reason, actor])
        if cursor.rowcount:
            return True
    earlier = CouponControl.objects.select_related("coupon").get(id=control_id)
    if (earlier.coupon_id, earlier.action, earlier.quantity) != (coupon.id, action, quantity):
        raise InvalidRequest(
            f"The id {control_id} was used to {earlier} coupon {earlier.coupon.coupon_type}: use a new id."
        )
    return False


# By constraint: the reason for the operator.
_CONSTRAINT_REASONS = {
    "coupon_window": "it would close before it opens (without an opening time, it opens now)",
    "coupon_times": "its times must be in the years 1970 to 9998 (UTC)",
    "coupon_stock": "its quantity must not be negative",
    "coupon_discount": "its discount must be 1 to 100 percent, or 1 won or more",
    "coupon_valid_days": "it must be valid for 1 to 36500 days, or without a limit",
    "coupon_type_letters": "its type must be 1 to 64 of A-Z a-z 0-9 _ -",
}


def coupon_create(*, actor: str, **values: Any) -> tuple[Coupon, bool]:
    """Create a coupon with ``values``, the fields of Coupon. Returns (coupon, whether it was created).

    ``actor`` is the operator's name. If the coupon type exists with the same values, nothing changes. Raises
    InvalidRequest if it exists with other values, or if the values contradict each other.
    """
    if values["coupon_type"].startswith(REHEARSAL_PREFIX):
        raise InvalidRequest(f"Types that begin with {REHEARSAL_PREFIX} are for rehearsals: use another.")
    existing = Coupon.objects.filter(coupon_type=values["coupon_type"]).first()
    if existing is None:
        try:
            with transaction.atomic():
                created = Coupon.objects.create(**values)
                record_change(
                    "coupon.create", created, actor=actor, before=None, after=recorded_values(created, values)
                )
                return created, True
        except (IntegrityError, DataError) as error:
            existing = Coupon.objects.filter(coupon_type=values["coupon_type"]).first()
            if existing is None:
                raise InvalidRequest(f"The coupon is not possible: {_reason(error)}.") from error
    differing = sorted(name for name, value in values.items() if getattr(existing, name) != value)
    if differing:
        raise InvalidRequest(
            f"A coupon {existing.coupon_type} exists and differs in {', '.join(differing)}:"
            " use another type, or change the coupon in the admin."
        )
    return existing, False


def _reason(error: IntegrityError | DataError) -> str:
    constraint = getattr(getattr(error.__cause__, "diag", None), "constraint_name", None)
    return _CONSTRAINT_REASONS.get(constraint or "") or str(error).splitlines()[0].removesuffix(".")
