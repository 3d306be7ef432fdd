"""What the pages show of processes, lag and key figures, in the order in which operators need it."""

from __future__ import annotations

from typing import NamedTuple

from kafka_bridge.lag import PartitionLag, lag_by_partition
from kafka_bridge.operating.kpis import MOST_LAG_MS, Kpi, kpis
from kafka_bridge.operating.processes import ProcessState, RunningProcess, running_processes


class Messaging(NamedTuple):
    """Lag of every partition, those that are behind first, and the key figures, which include the largest lag."""

    lags: list[PartitionLag]
    key_figures: list[Kpi]


def processes_by_need() -> list[RunningProcess]:
    """Return the running processes, those that need attention first."""
    return sorted(running_processes(), key=lambda process: process.state is ProcessState.ALIVE and process.is_newest)


def messaging() -> Messaging:
    """Return lag and key figures. A partition is behind from the target of the lag on."""
    lags = lag_by_partition()
    worst = max((lag.milliseconds for lag in lags), default=None)
    return Messaging(sorted(lags, key=lambda lag: lag.milliseconds <= MOST_LAG_MS), kpis(worst))
