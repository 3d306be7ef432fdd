"""The lag of the partitions that a consumer holds, in messages and in time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from .. import metrics
from .retrying_partitions import Partition

# A client that was not polled for so long does not know what came since.
STALE_SECONDS = 10.0


class PartitionLag:
    """Where the log of each partition ends, and since when messages exist there that were not fetched.

    The consumer's thread writes; the heartbeat's thread reads. Each read is one operation on a dict.
    """

    def __init__(self, name: str, readers: Callable[[str], Sequence[str]] | None = None) -> None:
        """``readers`` returns the groups of a topic, None: only ``name``."""
        self._readers = readers or (lambda topic: [name])
        self._ends: dict[Partition, int] = {}
        # The next offset to be handled, and since when it is known to exist, on the monotonic clock.
        self._unfetched: dict[Partition, tuple[int, float]] = {}

    def measure(self, partition: Partition, *, next_offset: int, end: int, is_fetched: bool) -> None:
        """Note the end that the client knows; ``is_fetched``: the next message is here, or there is none."""
        self._ends[partition] = end
        if is_fetched or end <= next_offset:
            self._unfetched.pop(partition, None)
        elif self._unfetched.get(partition, (-1, 0.0))[0] != next_offset:
            self._unfetched[partition] = next_offset, time.monotonic()
        topic, number = partition
        for group in self._readers(topic):
            metrics.LAG.labels(group, topic, str(number)).set(max(0, end - next_offset))

    def end(self, partition: Partition) -> int | None:
        """Return the end offset of the partition, None if it is not known yet."""
        end = self._ends.get(partition, -1)
        return end if end >= 0 else None

    def unfetched_ms(self, partition: Partition, next_offset: int) -> int:
        """Return for how many ms messages from ``next_offset`` on have been there unfetched, 0 if there are none."""
        offset, since = self._unfetched.get(partition, (-1, 0.0))
        return round(1000 * (time.monotonic() - since)) if offset == next_offset else 0

    def forget(self, partition: Partition) -> None:
        """Forget a revoked partition."""
        self._ends.pop(partition, None)
        self._unfetched.pop(partition, None)
        metrics.remove_partition(metrics.LAG, self._readers(partition[0]), *partition)
