"""A process that only uses CPU: ``python -m benchmarks.burner CORES``, a part of a core, until it is stopped."""

from __future__ import annotations

import sys
import time

_PAUSE = 0.002
_STEPS = 20_000


def main() -> None:
    """Compute whenever less than the wanted part of a core was used so far."""
    cores = float(sys.argv[1])
    started, used = time.perf_counter(), time.process_time()
    while True:
        if time.process_time() - used < cores * (time.perf_counter() - started):
            sum(range(_STEPS))
        else:
            time.sleep(_PAUSE)


if __name__ == "__main__":
    main()
