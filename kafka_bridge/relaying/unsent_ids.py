"""Sets of outbox ids that are not sent: gaps between sent ids, and every id above the last sent one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

# The greatest bigint, as the end of the last range.
_END = 2**63 - 1
# A lease row stores at most so many gaps.
_MOST_STORED = 1_000

Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class UnsentIds:
    """An immutable set of ids: disjoint ascending ranges of first and last id, of which the last one has no end.

    Every id at or under ``sent_through`` is sent, except those in ``gaps``. A gap is an id that was not visible when
    ids above it were sent: its transaction is open, was rolled back, or the row belongs to no relay.
    """

    ranges: tuple[Range, ...]

    @classmethod
    def after(cls, sent_through: int, gaps: Iterable[Range] = ()) -> UnsentIds:
        return cls((*gaps, (sent_through + 1, _END)))

    @property
    def sent_through(self) -> int:
        return self.ranges[-1][0] - 1

    @property
    def gaps(self) -> tuple[Range, ...]:
        return self.ranges[:-1]

    @property
    def position(self) -> int:
        """The id up to which every row is sent, without exception."""
        return self.ranges[0][0] - 1

    def __contains__(self, row_id: int) -> bool:
        return any(first <= row_id <= last for first, last in self.ranges)

    def __or__(self, other: UnsentIds) -> UnsentIds:
        merged: list[Range] = []
        for first, last in sorted((*self.ranges, *other.ranges)):
            if merged and first <= merged[-1][1] + 1:
                merged[-1] = (merged[-1][0], max(merged[-1][1], last))
            else:
                merged.append((first, last))
        return UnsentIds(tuple(merged))

    def __and__(self, other: UnsentIds) -> UnsentIds:
        common: list[Range] = []
        mine, others = iter(self.ranges), iter(other.ranges)
        first, last = next(mine)
        other_first, other_last = next(others)
        while True:
            if max(first, other_first) <= min(last, other_last):
                common.append((max(first, other_first), min(last, other_last)))
            if last == other_last == _END:
                return UnsentIds(tuple(common))
            if last < other_last:
                first, last = next(mine)
            else:
                other_first, other_last = next(others)

    def without(self, sent: Sequence[int]) -> UnsentIds:
        """Return the set without ``sent``, which are ascending ids."""
        if not sent:
            return self
        if len(self.ranges) == 1 and sent[0] == self.ranges[0][0] and sent[-1] - sent[0] + 1 == len(sent):
            # The usual case, without a loop over the ids.
            return UnsentIds.after(sent[-1])
        kept = [(last + 1, first - 1) for (_, last), (first, _) in pairwise(_runs(sent))]
        return self & UnsentIds.after(sent[-1], [(-1, sent[0] - 1), *kept])

    def without_up_to(self, row_id: int) -> UnsentIds:
        """Return the set without the ids at or under ``row_id``."""
        return self if row_id <= self.position else self & UnsentIds.after(row_id)

    def storable(self) -> UnsentIds:
        """Return the set with at most 1,000 gaps: with more, ``sent_through`` ends before the next gap."""
        if len(self.gaps) <= _MOST_STORED:
            return self
        return UnsentIds.after(self.ranges[_MOST_STORED][0] - 1, self.ranges[:_MOST_STORED])


def _runs(ids: Sequence[int]) -> Iterator[Range]:
    first = last = ids[0]
    for row_id in ids:
        if row_id > last + 1:
            yield first, last
            first = row_id
        last = row_id
    yield first, last
