"""Accept requests for many users at once, each under an id derived from its batch and user alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from uuid import UUID

from django.db import transaction

from common.api.errors import NotFound
from kafka_bridge.outbox.writing import OutboxRow, insert_new_rows, outbox_row, stored_ids

from .. import metrics
from ..admission import ADMISSIONS, AdmissionRequest, reservations
from ..coupon_cache import CachedCoupon, coupon_cache
from ..errors import CouponNotOpen
from ..events import IssueRequested
from ..messages import message_of
from .finish import find_decided


@dataclass(frozen=True)
class BulkIssue:
    """A bulk issue of one coupon. ``batch_id`` distinguishes several bulk issues of the same coupon."""

    coupon_id: int
    coupon_type: str
    batch_id: str

    @cached_property
    def _space(self) -> int:
        # Version 8 and variant bits for custom ids (RFC 9562), with 59 bits of the batch's hash between them.
        digest = hashlib.sha256(f"{self.coupon_id}\n{self.batch_id}".encode()).digest()
        high, low = int.from_bytes(digest[:6]), int.from_bytes(digest[6:8]) >> 5
        return high << 80 | 8 << 76 | low << 65 | 2 << 62

    def request_id(self, user_id: int) -> UUID:
        """Return the id of the user's request in this batch; it is the same on every call.

        The user id forms the low bits, so the ids of a batch are adjacent in the index: random ids cost many times
        the WAL.
        """
        return UUID(int=self._space | (user_id >> 62) << 64 | (user_id & ((1 << 62) - 1)))


def bulk_accept(*, batch: BulkIssue, user_ids: Sequence[int]) -> int:
    """Accept a request for each user who has none in this batch yet; returns the number of new requests.

    Idempotent, also after an interruption at any point. The window is checked as in ``request_accept``, but only for
    new requests. Raises NotFound, CouponNotOpen, and database errors: after a lost connection it is unknown whether
    the requests were accepted, and accepting them again is safe.
    """
    pending = {batch.request_id(user_id): user_id for user_id in user_ids}
    # The outbox row of a decided request may have been pruned.
    for request_id in stored_ids(list(pending)) | find_decided(list(pending)):
        del pending[request_id]
    if not pending:
        return 0
    coupon = coupon_cache.get(batch.coupon_id)
    if coupon is None or coupon.rehearsal:
        raise NotFound(f"There is no coupon {batch.coupon_type!r}.")
    moment = coupon_cache.clock.now()
    if refusal := coupon.window.refusal(moment):
        raise CouponNotOpen(refusal)
    candidates = [
        AdmissionRequest(request_id, user_id, coupon.coupon_id, coupon.total_quantity)
        for request_id, user_id in pending.items()
    ]
    with transaction.atomic():
        reserved = {candidate.request_id for candidate in ADMISSIONS[coupon.admission].admit_bulk(candidates)}
        rows = [_row(coupon, candidate, moment) for candidate in candidates]
        inserted = {row.event_id for row, is_new in zip(rows, insert_new_rows(rows), strict=True) if is_new}
        # A concurrent call inserted these rows first and reserved nothing for them: release our reservations.
        if unused := reserved - inserted:
            reservations.release(unused)
    metrics.ACCEPTED.labels("BATCH").inc(len(inserted))
    return len(inserted)


def _row(coupon: CachedCoupon, candidate: AdmissionRequest, moment: datetime) -> OutboxRow:
    request = IssueRequested(
        request_id=candidate.request_id,
        user_id=candidate.user_id,
        coupon_id=coupon.coupon_id,
        coupon_type=coupon.coupon_type,
        requested_at=moment,
        source="BATCH",
        # Without a reservation the issuer alone decides.
        admission="queue" if candidate.refusal else coupon.admission,
        sequence=candidate.sequence,
    )
    return outbox_row(message_of(request))
