"""What the door knows without a query: coupons, and the database's time.

An entry is at most a second old, so a change in the admin or by command takes effect within that. Nothing here
decides about stock.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime

from django.db.models import F
from django.db.models.functions import Now

from common.api.errors import Unavailable

from .models import Coupon
from .policy import Window
from .rollout import rollout_share

_MAX_AGE = 0.8
_MAX_ENTRIES = 10_000
_PATIENCE = 1.0


class DatabaseClock:
    """The database's time, continued by this machine's monotonic clock between two reads: no trust in its wall clock.

    It is never ahead of the database, and behind by no more than the answer took to arrive.
    """

    def __init__(self) -> None:
        self._offset: float | None = None

    def set(self, moment: datetime, answered_at: float) -> None:
        """``moment`` is the database's answer; ``answered_at`` the monotonic seconds when it had arrived.

        When it was asked says less: the connection may have been made first, which takes as long as it takes.
        """
        self._offset = moment.timestamp() - answered_at

    def now(self) -> datetime:
        """The database's time, aware, UTC."""
        if self._offset is None:
            raise RuntimeError("the clock is set by the first look into the catalogue")
        return datetime.fromtimestamp(self._offset + time.monotonic(), UTC)


@dataclass(frozen=True, slots=True)
class CachedCoupon:
    coupon_id: int
    coupon_type: str
    admission: str
    window: Window
    total_quantity: int
    # Of a thousand users, those whose requests the issue worker carries.
    worker_share: int
    loaded_at: float


class CouponCache:
    """Coupons by id and by type; one per process, shared by its threads."""

    def __init__(self) -> None:
        self.clock = DatabaseClock()
        self._lock = threading.Lock()
        self._entries: dict[int | str, CachedCoupon] = {}

    def get(self, id_or_type: int | str) -> CachedCoupon | None:
        """The coupon of that id (int) or type (str), None if there is none.

        Raises what the database raises, and Unavailable when other threads that load coupons wait for it.
        """
        entry = self._fresh(id_or_type)
        if entry is None:
            # Each of those who wait would wait for the database itself, one after the other.
            if not self._lock.acquire(timeout=_PATIENCE):
                raise Unavailable("The coupons cannot be read. It was not executed: try again.", retry_after=1)
            try:
                # Another thread may have loaded it while this one waited for the lock.
                entry = self._fresh(id_or_type) or self._load(id_or_type)
            finally:
                self._lock.release()
        return entry

    def clear(self) -> None:
        """Forget everything; the next look asks the database."""
        with self._lock:
            self._entries.clear()

    def _fresh(self, id_or_type: int | str) -> CachedCoupon | None:
        entry = self._entries.get(id_or_type)
        if entry is not None and time.monotonic() - entry.loaded_at < _MAX_AGE:
            return entry
        return None

    def _load(self, id_or_type: int | str) -> CachedCoupon | None:
        field = "id" if isinstance(id_or_type, int) else "coupon_type"
        asked_at = time.monotonic()
        row = (
            Coupon.objects.filter(**{field: id_or_type})
            .annotate(database_time=Now(), worker_share=rollout_share())
            .values_list(
                "id", "coupon_type", "admission", "opens_at", "closes_at", "paused", "total_quantity",
                F("worker_share"), F("database_time"),
            )
            .first()
        )  # fmt: skip
        answered_at = time.monotonic()
        if row is None:
            self._entries.pop(id_or_type, None)
            return None
        coupon_id, coupon_type, admission, opens_at, closes_at, paused, total, share, moment = row
        self.clock.set(moment, answered_at)
        window = Window(opens_at, closes_at, paused)
        entry = CachedCoupon(coupon_id, coupon_type, admission, window, total, share, asked_at)
        if len(self._entries) >= _MAX_ENTRIES:
            self._entries.clear()
        self._entries[coupon_id] = self._entries[coupon_type] = entry
        return entry


coupon_cache = CouponCache()
