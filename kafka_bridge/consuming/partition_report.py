"""What the heartbeat says of a partition that a consumer holds."""

from __future__ import annotations

from ..lag import HeldPartition
from ..registry import ReceivedMessage
from .paused_partitions import PausedPartitions
from .retrying_partitions import Partition, RetryingPartitions


def report_partition(
    group_name: str,
    partition: Partition,
    *,
    next_offset: int | None,
    end_offset: int | None,
    lag_ms: int | None,
    first: ReceivedMessage | None,
    retrying: RetryingPartitions,
    paused: PausedPartitions,
) -> HeldPartition:
    """Return the report of ``partition``; ``first``: its first buffered message, None if there is none.

    It is called in another thread: each read is one operation on a collection.
    """
    # The sweep reads the lag of a paused partition, since its consumer fetches nothing of it.
    is_paused = partition in paused
    is_known = next_offset is not None and end_offset is not None and not is_paused
    return HeldPartition(
        group=group_name,
        topic=partition[0],
        partition=partition[1],
        next_offset=next_offset,
        end_offset=end_offset,
        lag=max(0, (end_offset or 0) - (next_offset or 0)) if is_known else None,
        lag_ms=None if is_paused else lag_ms,
        state="paused" if is_paused else retrying.state(partition),
        state_seconds=paused.seconds(partition) if is_paused else retrying.waited_seconds(partition),
        waits_at=first.offset if first is not None and partition in retrying else None,
        error=retrying.error(partition),
    )
