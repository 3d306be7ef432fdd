"""The partitions of a consumer that an operator has paused: they are neither fetched nor handled."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Sequence

from ..client import Consumer, TopicPartition
from ..operating.pause_watch import Instruction, PauseWatch
from .retrying_partitions import Partition

logger = logging.getLogger(__name__)


class PausedPartitions:
    """Obeys a ``PauseWatch`` for one consumer, which polls on and so stays in its group.

    ``in`` asks whether the client has paused a partition, ``is_wanted`` whether an operator wants it paused by now. The
    consumer's thread writes; the heartbeat's thread reads.
    """

    def __init__(self, group_names: Sequence[str], watch: PauseWatch | None) -> None:
        """``group_names`` share the partitions: a pause of any stops all. ``watch`` None: nothing is ever paused."""
        self._group_names = group_names
        self._watch = watch
        # Since when, on the monotonic clock.
        self._since: dict[Partition, float] = {}

    def __contains__(self, partition: Partition) -> bool:
        return partition in self._since

    def __bool__(self) -> bool:
        return bool(self._since)

    def __str__(self) -> str:
        return ", ".join(f"{topic}[{number}]" for topic, number in sorted(self._since))

    def is_wanted(self, partition: Partition) -> bool:
        """Whether an operator has paused the partition, or a group that shares it."""
        watch = self._watch
        return watch is not None and any(watch.is_paused(name, *partition) for name in self._group_names)

    def apply(self, consumer: Consumer, assigned: Collection[Partition]) -> None:
        """Have the client pause and resume what has changed."""
        if self._watch is None:
            return
        wanted = {partition for partition in assigned if self.is_wanted(partition)}
        for partition in wanted - self._since.keys():
            consumer.pause([TopicPartition(*partition)])
            self._since[partition] = time.monotonic()
        for partition in self._since.keys() - wanted:
            consumer.resume([TopicPartition(*partition)])
            del self._since[partition]

    def forget(self, partition: Partition) -> None:
        """Forget a revoked partition: the client forgets its pause too."""
        self._since.pop(partition, None)

    def seconds(self, partition: Partition) -> float:
        """Return for how long this consumer has paused the partition, 0 if it has not."""
        now = time.monotonic()
        return now - self._since.get(partition, now)

    def instructions(self, assigned: Collection[Partition]) -> list[tuple[Partition, Instruction]]:
        """Return the operators' instructions for ``assigned`` partitions."""
        if self._watch is None or not self._watch.has_instructions:
            return []
        found = (
            (item, self._watch.instruction(name, *item)) for item in sorted(assigned) for name in self._group_names
        )
        return [(partition, instruction) for partition, instruction in found if instruction is not None]

    def forget_instruction(self, instruction: Instruction) -> None:
        """Forget an instruction that is answered."""
        if self._watch is not None:
            self._watch.forget(instruction)
