"""The threads that ask Kafka for what alerts judge: the state of its brokers, and the lag that no process reports."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol

from common.processes.lifecycle import StopFlag, drop_connection, first_line
from common.processes.log_limit import LogLimit

from .alarm_duty import is_recent
from .broker_watch import BrokerWatch
from .lag_sweep import LagSweep

logger = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
# Between two questions whether this process judges.
_STANDBY_SECONDS = 1.0
# At a stop; a look may take longer while Kafka is away, and its thread ends with the process.
_JOIN_SECONDS = 3.0


class Watch(Protocol):
    """Asks Kafka once per ``look``, and keeps the answer in PostgreSQL."""

    def look(self) -> None: ...

    def close(self) -> None: ...


class KafkaWatch:
    """Looks at Kafka every five seconds while this process judges the alarms, in a thread for each question.

    ``judged_at`` returns when this process last judged the alarms, on the monotonic clock; None if it never did.
    """

    def __init__(self, stop: StopFlag, judged_at: Callable[[], float | None]) -> None:
        self._threads = [
            _WatchThread("broker-watch", BrokerWatch(), stop, judged_at),
            _WatchThread("lag-sweep", LagSweep(), stop, judged_at),
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Wait for the threads, a moment at most; they end after the stop."""
        deadline = time.monotonic() + _JOIN_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))


class _WatchThread(threading.Thread):
    def __init__(self, name: str, watch: Watch, stop: StopFlag, judged_at: Callable[[], float | None]) -> None:
        super().__init__(name=name, daemon=True)
        self._watch = watch
        self._stop_flag = stop
        self._judged_at = judged_at
        self._log_limit = LogLimit(60.0)

    def run(self) -> None:
        try:
            while not self._stop_flag:
                if is_recent(self._judged_at()):
                    self._look()
                    self._stop_flag.wait(LOOK_SECONDS)
                else:
                    self._watch.close()
                    drop_connection()
                    self._stop_flag.wait(_STANDBY_SECONDS)
        finally:
            self._watch.close()
            drop_connection()

    def _look(self) -> None:
        try:
            self._watch.look()
        except Exception as error:
            if self._log_limit.due("failure"):
                logger.warning("%s: no figures for the alerts, it goes on: %s", self.name, first_line(error))
            drop_connection()
