"""Which partitions of one consumer wait for a service, or for somebody to mend a fault; and that an operator knows."""

from __future__ import annotations

import logging
import time

from django.conf import settings

from common.processes.lifecycle import drop_connection, first_line

from .. import metrics
from ..operating.alerts import end_alert, open_alert

logger = logging.getLogger(__name__)

Partition = tuple[str, int]

RUNBOOK = "docs/operations.md#a-group-that-waits"
# From then on an operator has to know: whatever restarts by itself has done so.
ALERT_AFTER_SECONDS = 300.0
_MAX_PAUSE = 10.0


class RetryingPartitions:
    """The partitions whose batch failed, each with the time of its next try."""

    def __init__(self, group_name: str) -> None:
        self._group_name = group_name
        # In seconds, and on the monotonic clock.
        self._pauses: dict[Partition, float] = {}
        self._retry_at: dict[Partition, float] = {}
        self._since: dict[Partition, float] = {}
        # Those in which a batch was handled since they were assigned: they have no alert of an earlier owner left.
        self._going: set[Partition] = set()

    def __contains__(self, partition: Partition) -> bool:
        return partition in self._pauses

    def is_due(self, partition: Partition) -> bool:
        """Whether the partition need not wait now."""
        return self._retry_at.get(partition, 0.0) <= time.monotonic()

    def retry_later(self, partition: Partition, place: str, why: str, seconds: float | None = None) -> None:
        """Let the partition wait, each time longer; for long, and an alert names ``place`` and ``why``.

        ``seconds`` is how long, where what it waits for has said so.
        """
        before = self._pauses.get(partition, settings.CONSUMER_BACKOFF_SECONDS / 2)
        pause = min(before * 2, _MAX_PAUSE) if seconds is None else seconds
        self._pauses[partition] = pause if seconds is None else before
        self._retry_at[partition] = time.monotonic() + pause
        self._since.setdefault(partition, time.monotonic())
        metrics.PAUSED.labels(self._group_name, partition[0], str(partition[1])).set(1)
        if (seconds := self._has_waited(partition)) >= ALERT_AFTER_SECONDS:
            self._alert(f"{self._group_name} has waited at {place} for {seconds / 60:.0f} minutes: {why}")

    def resume(self, partition: Partition) -> bool:
        """Note that a batch of the partition was handled; returns whether it had been waiting."""
        waited, was_told = partition in self, self._has_waited(partition) >= ALERT_AFTER_SECONDS
        if waited:
            self._take_out(partition)
            metrics.PAUSED.labels(self._group_name, partition[0], str(partition[1])).set(0)
        if was_told or partition not in self._going:
            self._going.add(partition)
            if not self._pauses:
                self._alert(None)
        return waited

    def forget(self, partition: Partition) -> None:
        """The partition is somebody else's now, and so is its alert."""
        self._take_out(partition)
        self._going.discard(partition)

    def _has_waited(self, partition: Partition) -> float:
        now = time.monotonic()
        return now - self._since.get(partition, now)

    def _take_out(self, partition: Partition) -> None:
        for state in (self._pauses, self._retry_at, self._since):
            state.pop(partition, None)

    def _alert(self, summary: str | None) -> None:
        """Open the group's alert, or end it. Another consumer of the group may wait still: its next try opens it."""
        rule = f"waiting-{self._group_name}"
        try:
            if summary is None:
                end_alert(rule)
            else:
                open_alert(rule=rule, severity="critical", summary=summary, runbook=RUNBOOK)
        except Exception as error:
            # While the database is what is waited for there are no rows to be had.
            logger.warning("%s: alert %s not told: %s", self._group_name, rule, first_line(error))
            drop_connection()
