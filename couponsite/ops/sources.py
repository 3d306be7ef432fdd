"""What the pages show of processes, lag and key figures, in the order in which operators need it."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import NamedTuple

from kafka_bridge.lag import lag_by_partition
from kafka_bridge.operating.kpis import MOST_LAG_MS, Kpi, kpis
from kafka_bridge.operating.processes import ProcessState, RunningProcess, running_processes


class TopicLag(NamedTuple):
    """What a group has not handled of a topic: ``messages`` of all partitions, the age of the oldest, and where it is.

    ``troubles``: states other than ok with their partitions, ``none`` for partitions without a consumer.
    """

    group: str
    topic: str
    partitions: str
    messages: int
    milliseconds: int
    worst_partition: int
    troubles: list[tuple[str, str]]

    @property
    def is_behind(self) -> bool:
        """Whether it is behind from the target of the lag on."""
        return self.milliseconds > MOST_LAG_MS


class Messaging(NamedTuple):
    """Lag by group and topic, those that are behind first, and the key figures, which include the largest lag."""

    lags: list[TopicLag]
    key_figures: list[Kpi]


class HeldPartitions(NamedTuple):
    """A process and the partitions that it holds; ``is_calm``: each is ok and not behind."""

    process: RunningProcess
    lags: list[TopicLag]
    number: int

    @property
    def is_calm(self) -> bool:
        return not any(lag.is_behind or lag.troubles for lag in self.lags)


def processes_by_need() -> list[RunningProcess]:
    """Return the running processes, those that need attention first."""
    return sorted(running_processes(), key=lambda process: process.state is ProcessState.ALIVE and process.is_newest)


def processes_with_partitions() -> list[HeldPartitions]:
    """Return the running processes with what each holds, those that need attention first."""
    return [
        HeldPartitions(
            process,
            _by_topic(
                (held.group, held.topic, held.partition, held.lag or 0, held.lag_ms or 0, held.state)
                for held in process.partitions
            ),
            len(process.partitions),
        )
        for process in processes_by_need()
    ]


def messaging() -> Messaging:
    """Return lag and key figures."""
    lags = _by_topic(
        (*lag.place, lag.messages, lag.milliseconds, "none" if lag.reported_by == "sweep" else lag.state)
        for lag in lag_by_partition()
    )
    worst = max((lag.milliseconds for lag in lags), default=None)
    return Messaging(sorted(lags, key=lambda lag: not lag.is_behind), kpis(worst))


def ranges(numbers: Iterable[int]) -> str:
    """Write numbers as ranges: ``0-2, 5``."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in found)


def _by_topic(partitions: Iterable[tuple[str, str, int, int, int, str]]) -> list[TopicLag]:
    """Sum up partitions: group, topic, partition, messages, milliseconds and state of each."""
    found = []
    for (group, topic), items in groupby(sorted(partitions), key=lambda item: item[:2]):
        lags = list(items)
        worst = max(lags, key=lambda item: item[4])
        troubles: dict[str, list[int]] = {}
        for _, _, partition, _, _, state in lags:
            if state != "ok":
                troubles.setdefault(state or "unknown", []).append(partition)
        found.append(
            TopicLag(
                group,
                topic,
                ranges(item[2] for item in lags),
                sum(item[3] for item in lags),
                worst[4],
                worst[2],
                [(state, ranges(places)) for state, places in troubles.items()],
            )
        )
    return found
