"""What a comparison can find; the names stand here and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Self

# Accepted and undecided: told, and nothing is wrong about it.
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

# What each means, and what --repair does about it.
MEANINGS: Final = {
    WAITING: ("accepted and undecided, which is as it should be", ""),
    PUBLISHED_UNDECIDED: ("published, undecided, and the issuer has nothing left to read", "published again"),
    WORKER_LOST: ("kept for the worker, and not in its list", "pushed again"),
    WORKER_FOREIGN: ("where the worker's list should be, and no list", "removed"),
    GATE_LEAKED: ("let in by the gate, and no request came of it", "ended as FAILED, then released"),
    GATE_UNTOLD: ("decided, and the gate was not told", "told to the gate"),
    GATE_EXTRA: ("in the gate, and has nothing", "taken out of the gate"),
    GATE_MISSING: ("has a coupon or a request, and is not in the gate", "added to the gate"),
    GATE_FOREIGN: ("in the gate's keys, and not the gate's", "removed"),
    GATE_HALF_LOADED: ("a gate without all of its keys", "dropped, it loads itself"),
    GATE_SEQUENCE: ("the gate's last place in line is wrong", "set"),
    RESERVATION_DECIDED: ("decided and still reserved", "given back"),
    RESERVATION_ALONE: ("reserved, and there is no such request", "ended as FAILED and given back"),
    STATUS_UNREADABLE: ("in the status cache, and no status that can be read", "written anew, or removed"),
    STATUS_WRONG: ("in the status cache, and not what PostgreSQL says", "written anew, or removed"),
    COUNTER_RESERVED: ("the coupon's reserved is not what is reserved", "counted again"),
    COUNTER_ISSUED: ("the coupon's issued is not what is issued", "counted again"),
}

_SHOWN = 5


class Findings:
    """What one comparison found: by name, a line for each. The same thing is the same line in the next comparison."""

    def __init__(self) -> None:
        self._lines: dict[str, dict[str, None]] = {name: {} for name in MEANINGS}
        # Told as a number: there may be millions.
        self.waiting = 0

    def add(self, name: str, line: str) -> None:
        """Take note of one."""
        self._lines[name][line] = None

    def both(self, other: Self) -> Findings:
        """What is in this one and in ``other``."""
        common = Findings()
        common.waiting = self.waiting
        for name, lines in self._lines.items():
            for line in lines.keys() & other._lines[name].keys():
                common.add(name, line)
        return common

    @property
    def counts(self) -> dict[str, int]:
        """How many are wrong, by name; without the names of which there is none."""
        return {name: len(lines) for name, lines in self._lines.items() if lines}

    def lines(self, *, repaired: bool) -> Iterator[str]:
        """A line per name, and some examples of each."""
        yield f"{WAITING}: {self.waiting} {MEANINGS[WAITING][0]}"
        for name, number in self.counts.items():
            meaning, repair = MEANINGS[name]
            yield f"{name}: {number} {meaning}: {repair if repaired else f'--repair: {repair}'}"
            examples = list(self._lines[name])
            for line in examples[:_SHOWN]:
                yield f"     {line}"
            if number > _SHOWN:
                yield f"     and {number - _SHOWN} more"
