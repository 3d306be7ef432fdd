"""The retrying partitions of a consumer: they wait for a service or for a fix, and open an alert after five minutes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from django.conf import settings

from common.processes.lifecycle import drop_connection, first_line

from .. import metrics
from ..operating.alerts import alert_rule, clear_alert, open_alert

logger = logging.getLogger(__name__)

Partition = tuple[str, int]

WAITING = alert_rule("waiting", "critical")
# By then everything that restarts by itself has done so, and an operator is needed.
ALERT_AFTER_SECONDS = 300.0
_MAX_PAUSE = 10.0
# Of what the heartbeat reports.
_LONGEST_ERROR = 300


class RetryingPartitions:
    """The partitions whose batch failed, each with the time of its next try."""

    def __init__(self, name: str, readers: Callable[[str], Sequence[str]] | None = None) -> None:
        """``name`` is the subject of the alert; ``readers`` returns the groups of a topic, None: only ``name``."""
        self._name = name
        self._readers = readers or (lambda topic: [name])
        # The last pause in seconds; times are on the monotonic clock.
        self._pauses: dict[Partition, float] = {}
        self._retry_at: dict[Partition, float] = {}
        self._since: dict[Partition, float] = {}
        # Why the last try failed, and whether at the poison limit.
        self._errors: dict[Partition, tuple[str, bool]] = {}
        # Partitions in which a batch was handled since they were assigned: alerts of an earlier owner are ended.
        self._recovered: set[Partition] = set()

    def __contains__(self, partition: Partition) -> bool:
        return partition in self._pauses

    def is_due(self, partition: Partition) -> bool:
        """Whether the partition may be tried now."""
        return self.retry_at(partition) <= time.monotonic()

    def retry_at(self, partition: Partition) -> float:
        """Return the time of the partition's next try, on the monotonic clock; 0 for one that is not retrying."""
        return self._retry_at.get(partition, 0.0)

    def retry_later(
        self,
        partition: Partition,
        position: str,
        why: str,
        seconds: float | None = None,
        *,
        is_at_limit: bool = False,
    ) -> None:
        """Postpone the partition's next try, by a pause that doubles up to 10 s, or by ``seconds`` if given.

        After ``ALERT_AFTER_SECONDS`` it opens an alert that names ``position`` and ``why``.
        """
        before = self._pauses.get(partition, settings.CONSUMER_BACKOFF_SECONDS / 2)
        pause = min(before * 2, _MAX_PAUSE) if seconds is None else seconds
        self._pauses[partition] = pause if seconds is None else before
        self._retry_at[partition] = time.monotonic() + pause
        self._since.setdefault(partition, time.monotonic())
        self._errors[partition] = (why, is_at_limit)
        self._set_gauge(partition, 1)
        if (seconds := self.waited_seconds(partition)) >= ALERT_AFTER_SECONDS:
            self._alert(f"{self._name} has waited at {position} for {seconds / 60:.0f} minutes: {why}")

    def retry_now(self, partition: Partition) -> None:
        """Make a retrying partition due; if that try fails too, its pauses begin anew."""
        if partition in self:
            self._pauses[partition] = settings.CONSUMER_BACKOFF_SECONDS / 2
            self._retry_at[partition] = 0.0

    def state(self, partition: Partition) -> str:
        """Return ``ok``, ``retrying`` or ``poison-limit``."""
        failure = self._errors.get(partition)
        if failure is None:
            return "ok"
        return "poison-limit" if failure[1] else "retrying"

    def error(self, partition: Partition) -> str:
        """Return why the last try failed, empty for a partition that is not retrying."""
        return self._errors.get(partition, ("", False))[0][:_LONGEST_ERROR]

    def resume(self, partition: Partition) -> bool:
        """Record that a batch of the partition was handled; returns whether it was retrying."""
        was_retrying, has_alert = partition in self, self.waited_seconds(partition) >= ALERT_AFTER_SECONDS
        if was_retrying:
            self._remove(partition)
            self._set_gauge(partition, 0)
        if has_alert or partition not in self._recovered:
            self._recovered.add(partition)
            if not self._pauses:
                self._alert(None)
        return was_retrying

    def forget(self, partition: Partition) -> None:
        """Forget a revoked partition; its new owner ends its alert."""
        self._remove(partition)
        self._recovered.discard(partition)
        metrics.remove_partition(metrics.PAUSED, self._readers(partition[0]), *partition)

    def waited_seconds(self, partition: Partition) -> float:
        """Return for how long the partition has been retrying, 0 if it is not."""
        now = time.monotonic()
        return now - self._since.get(partition, now)

    def _set_gauge(self, partition: Partition, value: int) -> None:
        topic, number = partition
        for group in self._readers(topic):
            metrics.PAUSED.labels(group, topic, str(number)).set(value)

    def _remove(self, partition: Partition) -> None:
        for state in (self._pauses, self._retry_at, self._since, self._errors):
            state.pop(partition, None)

    def _alert(self, summary: str | None) -> None:
        """Open the group's alert, or end it (None). If another consumer still retries, its next try opens it again."""
        try:
            if summary is None:
                clear_alert(WAITING, subject=self._name)
            else:
                open_alert(WAITING, summary, subject=self._name)
        except Exception as error:
            # No row can be written while the database itself is down.
            logger.warning("%s: alert %s not written: %s", self._name, WAITING.name, first_line(error))
            drop_connection()
