"""Which calls fail while others succeed: tells a call at fault from a service that is down."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection
from typing import NamedTuple
from uuid import UUID

# While other calls succeed, up to so many failing calls (or a tenth of the successes, if that is more) are at fault
# themselves; with more, the service is.
FEW_FAILURES = 3
# A failing call that was not repeated for so many seconds is no longer counted.
_FORGET_SECONDS = 120.0


class _Failing(NamedTuple):
    # The number of successes before the call failed for the first time.
    since: int
    seen_at: float


class CallRecord:
    """Successes and failing calls to one service, of all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failing: dict[UUID, _Failing] = {}
        self.successes = 0

    def succeeded(self, key: UUID) -> None:
        with self._lock:
            self.successes += 1
            self._failing.pop(key, None)

    def failing(self) -> set[UUID]:
        """Return the calls that failed and have not succeeded since."""
        with self._lock:
            return set(self._failing)

    def failed(self, keys: Collection[UUID], since: int) -> None:
        """Record failed calls; ``since``: the number of successes when they began."""
        now = time.monotonic()
        with self._lock:
            for key, failing in list(self._failing.items()):
                if now - failing.seen_at > _FORGET_SECONDS:
                    del self._failing[key]
            for key in keys:
                before = self._failing.get(key)
                self._failing[key] = _Failing(before.since if before else since, now)

    def others_succeed(self, keys: Collection[UUID]) -> bool:
        """Whether at least one of these failing calls is an exception among calls that succeed."""
        with self._lock:
            return any(self._is_exception(self.successes - self._failing[key].since) for key in keys)

    def _is_exception(self, successes: int) -> bool:
        return successes > 0 and len(self._failing) <= max(FEW_FAILURES, successes // 10)
