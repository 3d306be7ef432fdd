"""What does not hold, gathered while a run goes on."""

from __future__ import annotations

import threading
from collections import deque

_SHOWN = 40
_RECENT = 12


class Findings:
    """One entry per kind of fault, each with what was sent lately. Threads may add at the same time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_kind: dict[str, str] = {}
        self._times: dict[str, int] = {}
        self._recent: deque[str] = deque(maxlen=_RECENT)

    def __len__(self) -> int:
        return len(self._by_kind)

    def sent(self, what: str) -> None:
        """Remember input that a fault may follow from; ``what`` must say how to send it again."""
        self._recent.append(what)

    def add(self, kind: str, evidence: str = "", *, with_recent: bool = False) -> None:
        """Note a fault; of one ``kind`` the first evidence is kept and the others are counted."""
        with self._lock:
            self._times[kind] = self._times.get(kind, 0) + 1
            if kind in self._by_kind:
                return
            if with_recent:
                evidence += "".join(f"\n  sent before: {what}" for what in list(self._recent))
            self._by_kind[kind] = evidence

    def report(self) -> str:
        """All faults as text, empty if there is none."""
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
