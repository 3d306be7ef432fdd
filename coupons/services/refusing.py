"""What the operator is told when the issuer refuses requests that the gate had let in."""

from __future__ import annotations

from collections.abc import Collection
from uuid import UUID

from kafka_bridge.alerts import open_alert

from ..admission import reservations
from ..admission.reservations import Reservation

GATE_ADMITTED_REFUSED = "gate-admitted-refused"


def alert_refused(refused: Collection[UUID], reserved: Collection[Reservation]) -> None:
    """Open an alert if some of the refused requests were the gate's, within the transaction that ends them."""
    by_gate = [one for one in reserved if one.admission == reservations.GATE and one.request_id in refused]
    if by_gate:
        first = by_gate[0]
        open_alert(
            rule=GATE_ADMITTED_REFUSED,
            severity="warning",
            summary=f"{len(by_gate)} requests for coupon {first.coupon_id} were let in by the gate and refused by the"
            f" issuer, the first of them {first.request_id}",
            runbook="docs/operations.md#reconciling",
        )
