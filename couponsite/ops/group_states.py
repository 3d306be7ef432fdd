"""The consumer groups and workers as the page of groups shows them: partitions, holders, lag, pauses, instructions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from django.conf import settings

from kafka_bridge.lag import HeldPartition, PartitionLag, lag_by_partition
from kafka_bridge.models import GroupPause, PartitionInstruction
from kafka_bridge.operating.group_pauses import PausableWorker, PauseTarget, partitions_of, pauses, workers
from kafka_bridge.operating.partition_instructions import last_instructions
from kafka_bridge.operating.processes import ProcessState, RunningProcess, running_processes
from kafka_bridge.registry import ConsumerGroup, groups
from kafka_bridge.subscriptions import sharing

_LOOKS = {"ok": "is-ok", "paused": "is-warning", "retrying": "is-warning", "poison-limit": "is-critical"}
# Of a partition that is tried again an operator may say what to do.
_TRIED_AGAIN = ("retrying", "poison-limit")


class _Read(NamedTuple):
    """What the page shows, each read by one query."""

    lags: Sequence[PartitionLag]
    processes: Sequence[RunningProcess]
    pauses: dict[PauseTarget, GroupPause]
    instructions: dict[PauseTarget, PartitionInstruction]


@dataclass(frozen=True, slots=True)
class PartitionState:
    """A partition of a group. ``holder`` and ``held`` None: no living consumer says that it has the partition.

    ``pause`` is that of the partition itself; ``is_paused`` also counts that of its group. ``lag`` None: unknown.
    """

    target: PauseTarget
    holder: RunningProcess | None
    held: HeldPartition | None
    lag: PartitionLag | None
    pause: GroupPause | None
    is_paused: bool
    instruction: PartitionInstruction | None

    @property
    def state(self) -> str:
        """``ok``, ``retrying``, ``poison-limit`` or ``paused``; ``no consumer`` without a holder."""
        if self.is_paused:
            return "paused"
        if self.held is None:
            return "no consumer"
        # For two seconds after a resume its consumer still says that it is paused.
        return "resuming" if self.held.state == "paused" else self.held.state

    @property
    def look(self) -> str:
        """The state's class in ops.css."""
        return _LOOKS.get(self.state, "is-quiet")

    @property
    def messages(self) -> int | None:
        """How many messages it is behind, None if unknown."""
        return None if self.lag is None else self.lag.messages

    @property
    def lag_ms(self) -> int | None:
        """Its lag, None if unknown."""
        return None if self.lag is None else self.lag.milliseconds

    @property
    def obeys(self) -> bool:
        """Whether the holder of a paused partition has said that it stands still; without a holder it does."""
        return self.held is None or self.held.state == "paused"

    @property
    def waits_at(self) -> int | None:
        """The offset of the message that it waits at, None unless it is tried again and not paused."""
        return self.held.waits_at if self.held is not None and self.state in _TRIED_AGAIN else None


@dataclass(frozen=True, slots=True)
class GroupState:
    """A consumer group or a worker. ``detail``: the group's id, or what the worker is; ``pause``: of it as a whole.

    ``sharers``: the groups that have its id, and so are paused with it.
    """

    name: str
    detail: str
    pause: GroupPause | None
    processes: Sequence[RunningProcess]
    partitions: Sequence[PartitionState]
    sharers: Sequence[str] = ()

    @property
    def needs_attention(self) -> bool:
        """Whether it is paused, or a partition of it is not in order."""
        return self.pause is not None or any(partition.state != "ok" for partition in self.partitions)


def group_states() -> list[GroupState]:
    """Return all groups and workers, those that need attention first. Makes four queries."""
    read = _Read(
        lag_by_partition(),
        [process for process in running_processes() if process.state is not ProcessState.SILENT],
        {PauseTarget(row.consumer_group, row.topic, row.partition): row for row in pauses()},
        last_instructions(),
    )
    # Without a route for its event types a group has no topics, and its consumers cannot start.
    routed = [group for group in groups().values() if settings.KAFKA_ROUTES.keys() >= {*group.event_types}]
    states = [_group(group, read) for group in routed]
    states += [_worker(name, worker, read) for name, worker in workers().items()]
    return sorted(states, key=lambda state: (not state.needs_attention, state.name))


def _group(group: ConsumerGroup, read: _Read) -> GroupState:
    lags = {PauseTarget(*lag.place): lag for lag in read.lags if lag.place.group == group.name}
    held = {
        (partition.topic, partition.partition): (process, partition)
        for process in read.processes
        for partition in process.partitions
        if partition.group == group.name
    }
    names = sharing(group.name)
    whole = _pause(read, names)
    partitions = []
    for topic, number in partitions_of(group, read.lags).items():
        for partition in range(number):
            target = PauseTarget(group.name, topic, partition)
            holder, report = held.get((topic, partition), (None, None))
            pause = _pause(read, names, topic, partition)
            partitions.append(
                PartitionState(
                    target=target,
                    holder=holder,
                    held=report,
                    lag=lags.get(target),
                    pause=pause,
                    is_paused=whole is not None or pause is not None,
                    instruction=read.instructions.get(target),
                )
            )
    running = [process for process in read.processes if group.name in process.groups]
    sharers = [name for name in names if name != group.name]
    return GroupState(group.name, group.group_id, whole, running, partitions, sharers)


def _pause(
    read: _Read, names: Sequence[str], topic: str | None = None, partition: int | None = None
) -> GroupPause | None:
    """Return the pause of the first of ``names``, which share an id, that has one."""
    found = (read.pauses.get(PauseTarget(name, topic, partition)) for name in names)
    return next((pause for pause in found if pause is not None), None)


def _worker(name: str, worker: PausableWorker, read: _Read) -> GroupState:
    running = [process for process in read.processes if process.role == worker.role]
    return GroupState(name, worker.what, read.pauses.get(PauseTarget(name)), running, ())
