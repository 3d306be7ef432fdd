"""The closed list of what the reconciler can find. `reconcile` prints the names, and the metric uses them as labels.

The words of the meanings:

- leaked: admitted by the gate longer ago than the patience, without an outbox row or a result
- orphaned: a reservation without an outbox row or a result
- stale: the request is decided, and the gate entry or the reservation still counts as undecided
- missing: the coupon or the undecided request exists in PostgreSQL, and its gate entry does not
- unexpected: an entry or a key with nothing in PostgreSQL behind it, or an entry that this service does not write
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Self

# Accepted and undecided: reported as a count, and no error.
WAITING: Final = "waiting"

PUBLISHED_UNDECIDED: Final = "published-undecided"
WORKER_LOST: Final = "worker-lost"
WORKER_FOREIGN: Final = "worker-foreign"
GATE_LEAKED: Final = "gate-leaked"
GATE_UNTOLD: Final = "gate-untold"
GATE_EXTRA: Final = "gate-extra"
GATE_MISSING: Final = "gate-missing"
GATE_FOREIGN: Final = "gate-foreign"
GATE_HALF_LOADED: Final = "gate-half-loaded"
GATE_SEQUENCE: Final = "gate-sequence"
RESERVATION_DECIDED: Final = "reservation-decided"
RESERVATION_ALONE: Final = "reservation-alone"
STATUS_UNREADABLE: Final = "status-unreadable"
STATUS_WRONG: Final = "status-wrong"
COUNTER_RESERVED: Final = "counter-reserved"
COUNTER_ISSUED: Final = "counter-issued"
EFFECT_MISSED: Final = "effect-missed"

# By name: what the finding means, and what --repair does.
MEANINGS: Final = {
    WAITING: ("accepted and undecided, nothing is wrong", ""),
    PUBLISHED_UNDECIDED: (
        "published and undecided although the issuer has no lag: lost by the topic",
        "published again",
    ),
    WORKER_LOST: ("assigned to the issue worker and missing from the Redis queue", "pushed again"),
    WORKER_FOREIGN: ("unexpected: a key of the Redis queue of a wrong type", "removed"),
    GATE_LEAKED: ("leaked: admitted by the gate, without an outbox row or a result", "ended as FAILED, then released"),
    GATE_UNTOLD: ("stale: the request is decided and the gate does not know", "the gate is updated"),
    GATE_EXTRA: ("unexpected: a gate entry without a coupon or a request", "removed from the gate"),
    GATE_MISSING: ("missing: a coupon or a request without a gate entry", "added to the gate"),
    GATE_FOREIGN: ("unexpected: a key, field or member that no gate writes", "removed"),
    GATE_HALF_LOADED: ("a gate with a key missing or of a wrong type", "dropped, the next request loads it"),
    GATE_SEQUENCE: ("the gate's last sequence is below one in use, or no number", "set"),
    RESERVATION_DECIDED: ("stale: a reservation of a decided request", "released"),
    RESERVATION_ALONE: ("orphaned: a reservation without an outbox row or a result", "ended as FAILED and released"),
    STATUS_UNREADABLE: ("an unreadable entry of the status cache", "rewritten, or removed if there is no result"),
    STATUS_WRONG: (
        "an entry of the status cache that differs from PostgreSQL",
        "rewritten, or removed if there is no result",
    ),
    COUNTER_RESERVED: ("the coupon's counter `reserved` differs from its reservations", "counted again"),
    COUNTER_ISSUED: ("the coupon's counter `issued` differs from its issued coupons", "counted again"),
    EFFECT_MISSED: ("an order's event that an effect does not have although its group has no lag", "published again"),
}

_EXAMPLES_SHOWN = 5


class Findings:
    """The findings of one comparison: lines of text by name.

    A difference gets the same line in the next comparison, so that ``intersection`` recognizes it.
    """

    def __init__(self) -> None:
        self._lines: dict[str, dict[str, None]] = {name: {} for name in MEANINGS}
        # A count instead of lines: there may be millions.
        self.waiting = 0

    def add(self, name: str, *lines: str) -> None:
        """Add findings. The same line twice counts once."""
        self._lines[name] |= dict.fromkeys(lines)

    def intersection(self, other: Self) -> Findings:
        """Return the findings that are in this object and in ``other``."""
        common = Findings()
        common.waiting = self.waiting
        for name, lines in self._lines.items():
            common.add(name, *(lines.keys() & other._lines[name].keys()))
        return common

    @property
    def counts(self) -> dict[str, int]:
        """Number of lines by name; names without lines are left out."""
        return {name: len(lines) for name, lines in self._lines.items() if lines}

    def lines(self, *, repaired: bool) -> Iterator[str]:
        """Yield a summary line per name, each followed by up to 5 examples."""
        yield f"{WAITING}: {self.waiting} {MEANINGS[WAITING][0]}"
        for name, number in self.counts.items():
            meaning, repair = MEANINGS[name]
            yield f"{name}: {number} {meaning}: {repair if repaired else f'--repair: {repair}'}"
            examples = list(self._lines[name])
            for line in examples[:_EXAMPLES_SHOWN]:
                yield f"     {line}"
            if number > _EXAMPLES_SHOWN:
                yield f"     and {number - _EXAMPLES_SHOWN} more"
