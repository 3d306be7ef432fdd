"""The door for many users at once: requests of a batch, each under an id that only its batch and user decide."""

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
from ..admission import ADMISSIONS, AdmissionOutcome, AdmissionRequest, reservations
from ..coupon_cache import CachedCoupon, coupon_cache
from ..errors import CouponNotOpen
from ..events import IssueRequested
from ..messages import message_of
from .finish import find_decided


@dataclass(frozen=True)
class BulkIssue:
    """A bulk issue of one coupon. ``batch_id`` tells apart several of the same coupon."""

    coupon_id: int
    coupon_type: str
    batch_id: str

    @cached_property
    def _space(self) -> int:
        # Version and variant as RFC 9562 wants them for ids of one's own making, and 59 bits of the batch between.
        digest = hashlib.sha256(f"{self.coupon_id}\n{self.batch_id}".encode()).digest()
        high, low = int.from_bytes(digest[:6]), int.from_bytes(digest[6:8]) >> 5
        return high << 80 | 8 << 76 | low << 65 | 2 << 62

    def request_id(self, user_id: int) -> UUID:
        """The id of the user's request in this batch, the same whenever it is asked for.

        The user id is its end, so that the ids of a batch lie together in the index: random ones cost many times the
        WAL.
        """
        return UUID(int=self._space | (user_id >> 62) << 64 | (user_id & ((1 << 62) - 1)))


def bulk_accept(*, batch: BulkIssue, user_ids: Sequence[int]) -> int:
    """Accept a request for each of the users for whom the batch has not asked yet; returns how many were new.

    The same again changes nothing, also when it was interrupted anywhere. The window is judged as at the door, but
    only for what is new. Raises NotFound, CouponNotOpen, and what the database raises: after a lost connection it is
    unknown whether the requests were accepted, and harmless to accept them again.
    """
    asked = {batch.request_id(user_id): user_id for user_id in user_ids}
    # A request that has its answer may have left the outbox.
    for request_id in stored_ids(list(asked)) | find_decided(list(asked)):
        del asked[request_id]
    if not asked:
        return 0
    coupon = coupon_cache.get(batch.coupon_id)
    if coupon is None:
        raise NotFound(f"There is no coupon {batch.coupon_type!r}.")
    moment = coupon_cache.clock.now()
    if refusal := coupon.window.refusal(moment):
        raise CouponNotOpen(refusal)
    candidates = [
        AdmissionRequest(request_id, user_id, coupon.coupon_id, coupon.total_quantity)
        for request_id, user_id in asked.items()
    ]
    with transaction.atomic():
        booked = ADMISSIONS[coupon.admission].admit_bulk(candidates)
        rows = [_row(coupon, one, outcome, moment) for one, outcome in zip(candidates, booked, strict=True)]
        inserted = insert_new_rows(rows)
        accepted = sum(inserted)
        # Somebody else asked for them meanwhile, who has taken nothing for them.
        strays = [
            row.event_id for row, one, new in zip(rows, booked, inserted, strict=True) if one.newly_reserved and not new
        ]
        if strays:
            reservations.release(strays)
    metrics.ACCEPTED.labels("BATCH").inc(accepted)
    return accepted


def _row(coupon: CachedCoupon, one: AdmissionRequest, booked: AdmissionOutcome, moment: datetime) -> OutboxRow:
    request = IssueRequested(
        request_id=one.request_id,
        user_id=one.user_id,
        coupon_id=coupon.coupon_id,
        coupon_type=coupon.coupon_type,
        requested_at=moment,
        source="BATCH",
        # For whom nothing was taken the issuer decides alone.
        admission="queue" if booked.refusal else coupon.admission,
        sequence=booked.sequence,
    )
    return outbox_row(message_of(request))
