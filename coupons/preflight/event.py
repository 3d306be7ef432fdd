"""The checks of the coupon itself: its state, its gate, and the money at stake."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kafka_bridge.operating.preflight import CheckLine, Verdict

from ..admission.gate.overview import gate_overviews
from ..admission.reservations import GATE
from ..models import Coupon
from ..policy import MOST_DISCOUNT_WON


def coupon_lines(coupon: Any) -> Iterator[CheckLine]:
    """Judge the state and the stock of a row of ``selectors.coupons()``."""
    state = coupon.window.state(coupon.server_time, coupon.remaining)
    left = f"{coupon.remaining} of {coupon.total_quantity} units left"
    found = f"{state}, {left}, opens at {coupon.opens_at:%Y-%m-%d %H:%M} UTC"
    if coupon.remaining <= 0:
        remedy = f"python manage.py control_coupon {coupon.coupon_type} restock --quantity N"
        yield CheckLine("coupon", Verdict.NO_GO, found, remedy)
    elif state in ("PAUSED", "CLOSED"):
        action = "resume" if state == "PAUSED" else "open"
        yield CheckLine(
            "coupon", Verdict.NO_GO, found, f"python manage.py control_coupon {coupon.coupon_type} {action}"
        )
    else:
        yield CheckLine("coupon", Verdict.GO, found)


def money_lines(coupon: Coupon) -> Iterator[CheckLine]:
    """State the most that the whole stock can cost: units times the won that each takes off."""
    most = coupon.discount_cap
    if coupon.discount_type == Coupon.DiscountType.FIXED:
        most = coupon.discount_value
    if most is None:
        found = f"{coupon.total_quantity} units of {coupon.discount_value} % without a cap: no limit"
        yield CheckLine("money", Verdict.NO_GO, found, "set a discount cap on the coupon's page in the admin")
        return
    total = coupon.total_quantity * most
    found = f"{coupon.total_quantity:,} units of at most {most:,} won: {total:,} won at stake"
    if total > MOST_DISCOUNT_WON:
        yield CheckLine("money", Verdict.NO_GO, found, "correct the quantity or the discount of the coupon")
    else:
        yield CheckLine("money", Verdict.GO, found)


def gate_lines(coupon: Coupon) -> Iterator[CheckLine]:
    """Judge whether the gate of the coupon is loaded. Raises RedisError."""
    if coupon.admission != GATE:
        yield CheckLine("gate", Verdict.GO, f"the admission {coupon.admission} has none")
        return
    (gate,) = gate_overviews([coupon.id])
    if gate.state == "loaded":
        yield CheckLine("gate", Verdict.GO, f"loaded, {gate.held} units held, {gate.pending} pending")
    else:
        found = f"{gate.state}: the first requests would wait until it is loaded"
        yield CheckLine("gate", Verdict.NO_GO, found, f"python manage.py preflight {coupon.coupon_type} --warm")
