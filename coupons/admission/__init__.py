"""How a coupon admits requests: each admission is a module and an entry in ``ADMISSIONS``.

Admitted requests take the same path whatever the admission: outbox row, topic, issuer, result.
"""

from __future__ import annotations

from collections.abc import Sequence

from .base import Admission, AdmissionRequest, FinishedRequest, finished_requests
from .gate.admission import Gate
from .queue import Queue
from .reserve import Reserve

__all__ = [
    "ADMISSIONS",
    "Admission",
    "AdmissionRequest",
    "FinishedRequest",
    "finished_requests",
    "notify_finished",
    "revoke",
]

ADMISSIONS: dict[str, Admission] = {
    "queue": Queue(),
    "gate": Gate(),
    "reserve": Reserve(),
}


def notify_finished(finished: Sequence[FinishedRequest]) -> None:
    """Notify every admission of finished requests. Call it after the commit; it is idempotent."""
    for admission in ADMISSIONS.values():
        admission.on_finished(finished)


def revoke(coupon_id: int, user_ids: Sequence[int]) -> None:
    """Notify every admission that users' units of a coupon returned to the stock. Call it after the commit."""
    for admission in ADMISSIONS.values():
        admission.revoke(coupon_id, user_ids)
