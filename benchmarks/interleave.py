"""Taking turns: what is compared runs alternately, so that a busy moment of the machine hits both sides."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import median

# One turn; returns its rate.
Turn = Callable[[], float]
# Prepares one turn outside the clock; what it returns is timed and returns how many pieces it did.
Prepare = Callable[[], Callable[[], int]]


class Rates:
    """The rates of every contestant by name, one per round."""

    def __init__(self, rounds: Mapping[str, Sequence[float]]) -> None:
        self._rounds = rounds

    def __getitem__(self, name: str) -> float:
        """The median of a contestant's rates."""
        return median(self._rounds[name])

    def ratio(self, name: str, other: str) -> float:
        """The median of the rounds' ratios: two turns of one round met about the same machine."""
        return median(rate / against for rate, against in zip(self._rounds[name], self._rounds[other], strict=True))


def take_turns(contestants: Mapping[str, Turn], *, rounds: int) -> Rates:
    """Let every contestant have ``rounds`` turns, after one to warm up."""
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, turn in contestants.items():
            rate = turn()
            if number:
                rates[name].append(rate)
    return Rates(rates)


def alternate(contestants: Mapping[str, Prepare], *, rounds: int) -> Rates:
    """Like ``take_turns`` for work done in this process: pieces per second."""
    return take_turns({name: partial(_timed, prepare) for name, prepare in contestants.items()}, rounds=rounds)


def _timed(prepare: Prepare) -> float:
    work = prepare()
    # A worker freezes what it started with and is no slower for what a benchmark keeps in memory.
    gc.collect()
    gc.freeze()
    started = time.perf_counter()
    pieces = work()
    return pieces / (time.perf_counter() - started)
