"""The coupon cache of the accept API: coupons and the database's time without a query per request.

An entry is at most a second old, so a change in the admin or by command takes effect within a second. Stock is never
decided from the cache.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from django.db.models import F, Q
from django.db.models.functions import Now

from common.api.errors import Unavailable

from .models import Coupon
from .policy import Window, is_rehearsal
from .rollout import rollout_permille

_MAX_AGE = 0.8
_MAX_ENTRIES = 10_000
_LOCK_TIMEOUT = 1.0


class DatabaseClock:
    """The database's time, extrapolated by the monotonic clock between reads, so the local wall clock does not matter.

    It is never ahead of the database, and behind by no more than the time the database's response took to arrive.
    """

    def __init__(self) -> None:
        self._offset: float | None = None

    def set(self, moment: datetime, answered_at: float) -> None:
        """Set the clock to the database's time ``moment``, received at ``answered_at`` (monotonic seconds).

        The time of the query would be less exact: it may include opening a connection, which can take any time.
        """
        self._offset = moment.timestamp() - answered_at

    def now(self) -> datetime:
        """Return the database's time, aware, in UTC. Raises RuntimeError before the first load of a coupon."""
        if self._offset is None:
            raise RuntimeError("the database clock is not set: it is set when the coupon cache loads its first coupon")
        return datetime.fromtimestamp(self._offset + time.monotonic(), UTC)


@dataclass(frozen=True, slots=True)
class CachedCoupon:
    coupon_id: int
    coupon_type: str
    admission: str
    window: Window
    total_quantity: int
    # Users per thousand whose requests use the Redis queue.
    rollout_permille: int
    loaded_at: float
    # It is the hidden copy of a rehearsal.
    rehearsal: bool = False

    def is_for(self, user_id: int) -> bool:
        """Whether the coupon exists for a user: the copy of a rehearsal does only for the users reserved for it."""
        return not self.rehearsal or is_rehearsal(self.coupon_type, user_id)

    def age(self) -> float:
        """Return the seconds since it was read."""
        return time.monotonic() - self.loaded_at

    def is_half_old(self) -> bool:
        """Whether half of the time has passed for which the entry may be used."""
        return self.age() >= _MAX_AGE / 2


class CouponCache:
    """Coupons by id and by type; one per process, shared by its threads."""

    def __init__(self) -> None:
        self.clock = DatabaseClock()
        self._lock = threading.Lock()
        self._entries: dict[int | str, CachedCoupon] = {}

    def get(self, id_or_type: int | str) -> CachedCoupon | None:
        """Return the coupon by id (int) or type (str), None if it does not exist.

        Raises database errors, and Unavailable after waiting a second for other threads that load coupons.
        """
        entry = self.fresh(id_or_type)
        if entry is None:
            # Bounded: while the database does not answer, each waiting thread would wait for it in turn.
            if not self._lock.acquire(timeout=_LOCK_TIMEOUT):
                raise Unavailable("The coupons cannot be read. It was not executed: try again.", retry_after=1)
            try:
                # Another thread may have loaded it while this one waited for the lock.
                entry = self.fresh(id_or_type) or self.load([id_or_type])[0]
            finally:
                self._lock.release()
        return entry

    def fresh(self, id_or_type: int | str) -> CachedCoupon | None:
        """Return the cached coupon unless it is too old; makes no query."""
        entry = self._entries.get(id_or_type)
        return entry if entry is not None and entry.age() < _MAX_AGE else None

    def is_rehearsal(self, id_or_type: int | str) -> bool:
        """Whether a coupon that was read just now is the copy of a rehearsal, which no figure counts."""
        entry = self._entries.get(id_or_type)
        return entry is not None and entry.rehearsal

    def clear(self) -> None:
        """Remove all entries; the next ``get`` reads the database."""
        with self._lock:
            self._entries.clear()

    def load(self, ids_or_types: Sequence[int | str]) -> list[CachedCoupon | None]:
        """Read coupons by id or type in one query and cache them; None for those that do not exist, in order."""
        queried_at = time.monotonic()
        rows = list(
            Coupon.objects.filter(
                Q(id__in=[key for key in ids_or_types if isinstance(key, int)])
                | Q(coupon_type__in=[key for key in ids_or_types if isinstance(key, str)])
            )
            .annotate(database_time=Now(), rollout_permille=rollout_permille())
            .values_list(
                "id", "coupon_type", "admission", "opens_at", "closes_at", "paused", "total_quantity",
                "rehearsal", F("rollout_permille"), F("database_time"),
            )
        )  # fmt: skip
        answered_at = time.monotonic()
        loaded: dict[int | str, CachedCoupon] = {}
        for coupon_id, coupon_type, admission, opens_at, closes_at, paused, total, rehearsal, permille, moment in rows:
            self.clock.set(moment, answered_at)
            window = Window(opens_at, closes_at, paused)
            entry = CachedCoupon(coupon_id, coupon_type, admission, window, total, permille, queried_at, rehearsal)
            loaded[coupon_id] = loaded[coupon_type] = entry
        if len(self._entries) >= _MAX_ENTRIES:
            self._entries.clear()
        self._entries.update(loaded)
        for key in ids_or_types:
            if key not in loaded:
                self._entries.pop(key, None)
        return [loaded.get(key) for key in ids_or_types]


coupon_cache = CouponCache()
