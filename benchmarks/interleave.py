"""Interleaved measurement: compared work runs alternately, so that a busy moment of the machine affects both sides."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import median

# One turn; returns its rate.
Turn = Callable[[], float]
# Prepares one turn untimed; the returned function is timed and returns the number of items that it processed.
Prepare = Callable[[], Callable[[], int]]


class Rates:
    """Rates by contestant name, one per round."""

    def __init__(self, rounds: Mapping[str, Sequence[float]]) -> None:
        self._rounds = rounds

    def __getitem__(self, name: str) -> float:
        """Return the median of a contestant's rates."""
        return median(self._rounds[name])

    def ratio(self, name: str, other: str) -> float:
        """Return the median of the ratios per round: turns of one round ran under about the same load."""
        return median(rate / against for rate, against in zip(self._rounds[name], self._rounds[other], strict=True))


def take_turns(contestants: Mapping[str, Turn], *, rounds: int) -> Rates:
    """Give every contestant ``rounds`` turns, after one unmeasured turn to warm up."""
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, turn in contestants.items():
            rate = turn()
            if number:
                rates[name].append(rate)
    return Rates(rates)


def alternate(contestants: Mapping[str, Prepare], *, rounds: int) -> Rates:
    """Like ``take_turns`` for work in this process; the rate is items per second."""
    return take_turns({name: partial(_timed, prepare) for name, prepare in contestants.items()}, rounds=rounds)


def _timed(prepare: Prepare) -> float:
    work = prepare()
    # As workers do after their start: else the garbage collector would scan what the benchmark keeps in memory.
    gc.collect()
    gc.freeze()
    started = time.perf_counter()
    items = work()
    return items / (time.perf_counter() - started)
