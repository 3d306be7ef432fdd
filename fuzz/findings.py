"""Findings of a run: faults of the service, collected while it runs."""

from __future__ import annotations

import threading
from collections import deque

_SHOWN = 40
_RECENT = 12


class Findings:
    """One entry per kind of fault, with evidence and the latest input. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_kind: dict[str, str] = {}
        self._times: dict[str, int] = {}
        self._recent: deque[str] = deque(maxlen=_RECENT)

    def __len__(self) -> int:
        return len(self._by_kind)

    def sent(self, what: str) -> None:
        """Record input that may cause a fault; ``what`` must be enough to send it again."""
        self._recent.append(what)

    def add(self, kind: str, evidence: str = "", *, with_recent: bool = False) -> None:
        """Record a fault; of each ``kind`` the first evidence is kept and later faults are counted."""
        with self._lock:
            self._times[kind] = self._times.get(kind, 0) + 1
            if kind in self._by_kind:
                return
            if with_recent:
                evidence += "".join(f"\n  sent before: {what}" for what in list(self._recent))
            self._by_kind[kind] = evidence

    def report(self) -> str:
        """Return all faults as text, empty if there are none."""
        with self._lock:
            entries = [
                f"FAIL {kind} ({self._times[kind]} times)\n{_indented(evidence)}"
                for kind, evidence in list(self._by_kind.items())[:_SHOWN]
            ]
            if (more := len(self._by_kind) - _SHOWN) > 0:
                entries.append(f"and {more} more kinds")
        return "\n".join(entries)


def _indented(text: str) -> str:
    return "".join(f"     {line}\n" for line in text.splitlines())
