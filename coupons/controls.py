"""What an operator does to a coupon: open, pause, resume, close, restock.

Each control has an id of its own and is written down in the transaction of its change, under the lock that the issuer
takes. The same id again changes nothing and is no error, whatever has become of the coupon since: so whoever does not
know whether a control was carried out repeats it. A change takes effect at the door within a second.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import DataError, IntegrityError, connection, transaction

from common.api.errors import InvalidRequest, NotFound
from common.postgres.clock import database_time
from kafka_bridge.outbox.writing import new_event_id

from .models import Coupon, CouponControl

Action = CouponControl.Action

# What a control makes of the locked coupon at a moment: the fields to change. Raises InvalidRequest to refuse.
_Rule = Callable[[Coupon, datetime], dict[str, Any]]

_MOST_PIECES = 2**63 - 1
_MOST_LETTERS = {"reason": 500, "actor": 150}

# The same id at the same moment waits here until the first has ended.
_INSERT_NEW = """
    INSERT INTO coupons_couponcontrol (id, coupon_id, action, quantity, reason, actor)
    VALUES (%s, %s, %s, %s, %s, %s)
    ON CONFLICT (id) DO NOTHING
"""


def coupon_open(*, id_or_type: int | str, actor: str, control_id: UUID | None = None, reason: str = "") -> Coupon:
    """Take requests from now on, whatever kept the coupon shut: an opening to come, an end that has passed, a pause.

    An end to come stays. Of an open coupon nothing changes. Returns the coupon as it is afterwards; so do the others
    of this module. ``actor`` is who does it. Raises NotFound and InvalidRequest (an id that was used for another
    control).
    """
    return _carry_out(Action.OPEN, _open, id_or_type, actor, control_id, reason)


def coupon_pause(*, id_or_type: int | str, actor: str, control_id: UUID | None = None, reason: str = "") -> Coupon:
    """Take no requests until ``coupon_resume``; what was accepted is still decided.

    One that is still to open stays shut when its time comes. Refused (InvalidRequest) for a closed coupon.
    """
    return _carry_out(Action.PAUSE, _pause, id_or_type, actor, control_id, reason)


def coupon_resume(*, id_or_type: int | str, actor: str, control_id: UUID | None = None, reason: str = "") -> Coupon:
    """End a pause; without one nothing changes. Refused (InvalidRequest) for a closed coupon: that is to be opened."""
    return _carry_out(Action.RESUME, _resume, id_or_type, actor, control_id, reason)


def coupon_close(*, id_or_type: int | str, actor: str, control_id: UUID | None = None, reason: str = "") -> Coupon:
    """Take no requests from now on; what was accepted is still decided.

    One that is still to open does not open any more. Of a closed coupon nothing changes.
    """
    return _carry_out(Action.CLOSE, _close, id_or_type, actor, control_id, reason)


def coupon_restock(
    *, id_or_type: int | str, quantity: int, actor: str, control_id: UUID | None = None, reason: str = ""
) -> Coupon:
    """Add ``quantity`` pieces (1 or more), in whatever state the coupon is; it opens or closes nothing.

    A request that ended SOLD_OUT keeps its answer: its user asks again.
    """
    if quantity < 1:
        raise InvalidRequest("A restock adds 1 or more; to take pieces away, change the quantity in the admin.")

    def add(coupon: Coupon, now: datetime) -> dict[str, Any]:
        if coupon.total_quantity + quantity > _MOST_PIECES:
            raise InvalidRequest(f"A coupon has at most {_MOST_PIECES} pieces.")
        return {"total_quantity": coupon.total_quantity + quantity}

    if quantity > _MOST_PIECES:
        raise InvalidRequest(f"A coupon has at most {_MOST_PIECES} pieces.")
    return _carry_out(Action.RESTOCK, add, id_or_type, actor, control_id, reason, quantity)


def _open(coupon: Coupon, now: datetime) -> dict[str, Any]:
    ended = coupon.closes_at is not None and coupon.closes_at <= now
    return {
        # An opening that has passed stays: the issuer judges requests of others by when they were made.
        "opens_at": min(coupon.opens_at, now),
        "closes_at": None if ended else coupon.closes_at,
        "paused": False,
    }


def _pause(coupon: Coupon, now: datetime) -> dict[str, Any]:
    if _is_closed(coupon, now):
        raise InvalidRequest(f"Coupon {coupon.coupon_type} is closed: there is nothing to pause.")
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


def _carry_out(
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
            # After the lock and by a statement of its own: a moment from before a wait would lie in the past.
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
    if len(text) > _MOST_LETTERS[name] or "\0" in text:
        raise InvalidRequest(f"The {name} is at most {_MOST_LETTERS[name]} characters, without NUL.")


def _locked(id_or_type: int | str) -> Coupon:
    field = "id" if isinstance(id_or_type, int) else "coupon_type"
    coupon = Coupon.objects.select_for_update(no_key=True).filter(**{field: id_or_type}).first()
    if coupon is None:
        raise NotFound(f"There is no coupon {id_or_type!r}.")
    return coupon


def _is_new(control_id: UUID, coupon: Coupon, action: Action, quantity: int | None, reason: str, actor: str) -> bool:
    """Write the control down; False if it was carried out before. Raises InvalidRequest if that was another one."""
    with connection.cursor() as cursor:
        cursor.execute(_INSERT_NEW, [control_id, coupon.id, action.value, quantity, reason, actor])
        if cursor.rowcount:
            return True
    earlier = CouponControl.objects.select_related("coupon").get(id=control_id)
    if (earlier.coupon_id, earlier.action, earlier.quantity) != (coupon.id, action, quantity):
        raise InvalidRequest(
            f"The id {control_id} was used to {earlier} coupon {earlier.coupon.coupon_type}: take a new one."
        )
    return False


_WHY = {
    "coupon_window": "it would close before it opens (without an opening, that is now)",
    "coupon_times": "its times must be in the years 1970 to 9998 (UTC)",
    "coupon_stock": "its quantity must not be negative",
    "coupon_discount": "its discount must be 1 to 100 percent, or 1 won or more",
    "coupon_valid_days": "it must be valid for 1 to 36500 days, or without end",
    "coupon_type_letters": "its type must be 1 to 64 of A-Z a-z 0-9 _ -",
}


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
                raise InvalidRequest(f"The coupon is not possible: {_reason(error)}.") from error
    differing = sorted(name for name, value in values.items() if getattr(existing, name) != value)
    if differing:
        raise InvalidRequest(
            f"A coupon {existing.coupon_type} exists and differs in {', '.join(differing)}:"
            " take another type, or change it in the admin."
        )
    return existing, False


def _reason(error: IntegrityError | DataError) -> str:
    constraint = getattr(getattr(error.__cause__, "diag", None), "constraint_name", None)
    return _WHY.get(constraint or "") or str(error).splitlines()[0].removesuffix(".")
