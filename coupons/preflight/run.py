"""Run all checks of a coupon's event."""

from __future__ import annotations

from functools import partial

from kafka_bridge.operating.preflight import CheckLine, Verdict, run_check
from kafka_bridge.operating.preflight_checks import messaging_lines

from .. import selectors
from ..admission.gate.load import load
from ..admission.gate.store import GateStore
from ..admission.reservations import GATE
from ..models import Coupon
from . import capacity, event

# A crowd is several times as large as the stock, and users ask again.
CROWD_FACTOR = 5
_POSTGRESQL = "PostgreSQL"


def preflight(coupon_type: str, requests: int | None = None) -> list[CheckLine]:
    """Return the lines of all checks; ``requests`` None expects ``CROWD_FACTOR`` times the stock.

    A service that is away is a no-go line. Without PostgreSQL it is the only line.
    """
    found: list[Coupon] = []

    def read() -> list[CheckLine]:
        found.extend(selectors.coupons().filter(coupon_type=coupon_type))
        if found:
            return list(event.coupon_lines(found[0]))
        remedy = f"python manage.py create_coupon {coupon_type} --quantity N"
        return [CheckLine("coupon", Verdict.NO_GO, f"there is no coupon {coupon_type}", remedy)]

    lines = run_check(_POSTGRESQL, read)
    if not found:
        return lines
    (coupon,) = found
    expected = coupon.total_quantity * CROWD_FACTOR if requests is None else requests
    lines += run_check("money", partial(event.money_lines, coupon))
    for name, check in (
        ("settings", partial(capacity.settings_lines, expected)),
        ("Redis", partial(capacity.redis_lines, expected)),
        ("connections", capacity.connection_lines),
        ("disk", partial(capacity.disk_lines, expected)),
        ("processes", capacity.web_lines),
    ):
        lines += run_check(name, check)
    lines += run_check("gate", partial(event.gate_lines, coupon))
    return lines + messaging_lines()


def gate_warm(coupon_type: str) -> None:
    """Load the gate of the coupon if it has one that is not loaded. Raises Redis and database errors."""
    coupon = Coupon.objects.filter(coupon_type=coupon_type, admission=GATE).first()
    if coupon is not None:
        load(GateStore(coupon.id))
