"""How a coupon lets requests in: each way is a module, and a line in ``ADMISSIONS``.

What is let in goes one way from there on, whichever admission it was: outbox row, topic, issuer, result.
"""

from __future__ import annotations

from collections.abc import Sequence

from .base import Admission, AdmissionOutcome, AdmissionRequest, FinishedRequest, finished_requests
from .gate.admission import Gate
from .queue import Queue
from .reserve import Reserve

__all__ = [
    "ADMISSIONS",
    "Admission",
    "AdmissionOutcome",
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


def notify_finished(ended: Sequence[FinishedRequest]) -> None:
    """Tell every admission how requests ended. Call it once that is committed; again does no harm."""
    for admission in ADMISSIONS.values():
        admission.on_finished(ended)


def revoke(coupon_id: int, user_ids: Sequence[int]) -> None:
    """Tell every admission that users' pieces of a coupon went back to the stock. Call it once that is committed."""
    for admission in ADMISSIONS.values():
        admission.revoke(coupon_id, user_ids)
