"""An operator's controls of a coupon: create, open, pause, resume, close, restock.

Each control but a creation has an id and is recorded in the transaction of its change, under the lock that the issuer
takes. Repeating an id changes nothing and is no error, whatever happened to the coupon since: an operator who does not
know whether a control was applied repeats it. The accept API follows a change within a second.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import DataError, IntegrityError, connection, transaction

from common.api.errors import InvalidRequest, NotFound
from common.bigint import MAX_BIGINT
from common.postgres.clock import database_time
from kafka_bridge.outbox.writing import new_event_id

from .models import Coupon, CouponControl

Action = CouponControl.Action

# Takes the locked coupon and the current time; returns the fields to change. Raises InvalidRequest to refuse.
_Rule = Callable[[Coupon, datetime], dict[str, Any]]

_MAX_LENGTHS = {"reason": 500, "actor": 150}

# A concurrent control with the same id waits here until the first transaction has finished.
_INSERT_NEW = """
    INSERT INTO coupons_couponcontrol (id, coupon_id, action, quantity, reason, actor)
    VALUES (%s, %s, %s, %s, %s, %s)
    ON CONFLICT (id) DO NOTHING
"""


def coupon_open(*, id_or_type: int | str, actor: str, control_id: UUID | None = None, reason: str = "") -> Coupon:
    """Open the coupon now: end a pause, move a future opening time to now, and remove a past closing time.

    A closing time in the future stays. An open coupon is not changed. ``actor`` is the operator's name, ``control_id``
    None takes a new id. Returns the changed coupon, as all controls do. Raises NotFound, and InvalidRequest if the id
    was used for another control.
    """
    return _apply(Action.OPEN, _open, id_or_type, actor, control_id, reason)


def coupon_pause(*, id_or_type: int | str, actor: str, control_id: UUID | None = None, reason: str = "") -> Coupon:
    """Refuse new requests until ``coupon_resume``; accepted requests are still decided.

    A coupon that is not open yet stays paused at its opening time. Raises InvalidRequest for a closed coupon.
    """
    return _apply(Action.PAUSE, _pause, id_or_type, actor, control_id, reason)


def coupon_resume(*, id_or_type: int | str, actor: str, control_id: UUID | None = None, reason: str = "") -> Coupon:
    """End a pause; a coupon that is not paused is not changed. Raises InvalidRequest for a closed coupon: open it."""
    return _apply(Action.RESUME, _resume, id_or_type, actor, control_id, reason)


def coupon_close(*, id_or_type: int | str, actor: str, control_id: UUID | None = None, reason: str = "") -> Coupon:
    """Refuse new requests from now on; accepted requests are still decided.

    A coupon that is not open yet will not open. A closed coupon is not changed.
    """
    return _apply(Action.CLOSE, _close, id_or_type, actor, control_id, reason)


def coupon_restock(
    *, id_or_type: int | str, quantity: int, actor: str, control_id: UUID | None = None, reason: str = ""
) -> Coupon:
    """Add ``quantity`` units (1 or more) to a coupon in any state; the restock does not open or close it.

    A request with the result SOLD_OUT keeps it: its user sends a new request.
    """
    if quantity < 1:
        raise InvalidRequest("A restock adds 1 or more; to reduce the stock, change the quantity in the admin.")

    def add(coupon: Coupon, now: datetime) -> dict[str, Any]:
        if coupon.total_quantity + quantity > MAX_BIGINT:
            raise InvalidRequest(f"A coupon has at most {MAX_BIGINT} units.")
        return {"total_quantity": coupon.total_quantity + quantity}

    if quantity > MAX_BIGINT:
        raise InvalidRequest(f"A coupon has at most {MAX_BIGINT} units.")
    return _apply(Action.RESTOCK, add, id_or_type, actor, control_id, reason, quantity)


def _open(coupon: Coupon, now: datetime) -> dict[str, Any]:
    ended = coupon.closes_at is not None and coupon.closes_at <= now
    return {
        # A past opening time stays: the issuer compares it with the time at which each accepted request was made.
        "opens_at": min(coupon.opens_at, now),
        "closes_at": None if ended else coupon.closes_at,
        "paused": False,
    }


def _pause(coupon: Coupon, now: datetime) -> dict[str, Any]:
    if _is_closed(coupon, now):
        raise InvalidRequest(f"Coupon {coupon.coupon_type} is closed: it cannot be paused.")
    return {"paused": True}


def _resume(coupon: Coupon, now: datetime) -> dict[str, Any]:
    if _is_closed(coupon, now):
        raise InvalidRequest(f"Coupon {coupon.coupon_type} is closed, not paused: open it instead.")
    return {"paused": False}


def _close(coupon: Coupon, now: datetime) -> dict[str, Any]:
    if _is_closed(coupon, now):
        return {}
    return {"opens_at": min(coupon.opens_at, now), "closes_at": now}


def _is_closed(coupon: Coupon, now: datetime) -> bool:
    return coupon.window.state(now, coupon.remaining) == "CLOSED"


def _apply(
    action: Action,
    rule: _Rule,
    id_or_type: int | str,
    actor: str,
    control_id: UUID | None,
    reason: str,
    quantity: int | None = None,
) -> Coupon:
    _check_text("reason", reason)
    _check_text("actor", actor)
    with transaction.atomic():
        coupon = _locked(id_or_type)
        if _is_new(control_id or new_event_id(), coupon, action, quantity, reason, actor):
            # Read after the lock, in a statement of its own: a time read before the wait would be in the past.
            changes = rule(coupon, database_time())
            if changes:
                Coupon.objects.filter(id=coupon.id).update(**changes)
                coupon.refresh_from_db()
    return coupon


def _check_text(name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"The {name} is not valid Unicode.") from error
    if len(text) > _MAX_LENGTHS[name] or "\0" in text:
        raise InvalidRequest(f"The {name} is at most {_MAX_LENGTHS[name]} characters, without NUL.")


def _locked(id_or_type: int | str) -> Coupon:
    field = "id" if isinstance(id_or_type, int) else "coupon_type"
    coupon = Coupon.objects.select_for_update(no_key=True).filter(**{field: id_or_type}).first()
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


def coupon_create(**values: Any) -> tuple[Coupon, bool]:
    """Create a coupon with ``values``, the fields of Coupon. Returns (coupon, whether it was created).

    If the coupon type exists with the same values, nothing changes. Raises InvalidRequest if it exists with other
    values, or if the values contradict each other.
    """
    existing = Coupon.objects.filter(coupon_type=values["coupon_type"]).first()
    if existing is None:
        try:
            with transaction.atomic():
                return Coupon.objects.create(**values), True
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
