"""Taking turns: what is compared runs alternately, so that a busy moment of the machine hits both sides."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from statistics import median

# Prepares one turn outside the clock; what it returns is timed and returns how many pieces it did.
Prepare = Callable[[], Callable[[], int]]


def alternate(contestants: Mapping[str, Prepare], *, rounds: int) -> dict[str, float]:
    """Pieces per second of every contestant by name: the median of ``rounds`` turns, after one to warm up."""
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        for name, prepare in contestants.items():
            work = prepare()
            # A worker freezes what it started with and is no slower for what a benchmark keeps in memory.
            gc.collect()
            gc.freeze()
            started = time.perf_counter()
            pieces = work()
            took = time.perf_counter() - started
            if turn:
                rates[name].append(pieces / took)
    return {name: median(values) for name, values in rates.items()}
