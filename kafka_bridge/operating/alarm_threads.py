"""The threads of a process that watches the service: one judges the alarms, another sends their notifications."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from django.conf import settings

from common.processes.lifecycle import StopFlag, drop_connection, first_line
from common.processes.log_limit import LogLimit

from .alarm_duty import AlarmDuty, is_recent
from .heartbeat import Heartbeat
from .kafka_watch import KafkaWatch
from .notifications import call_deadman, send_next

logger = logging.getLogger(__name__)

# Between two looks for notifications that are due.
POLL_SECONDS = 1.0
DEADMAN_SECONDS = 60.0
# After a call of the dead man's switch that failed.
DEADMAN_RETRY_SECONDS = 10.0
# At a stop: longer than a call takes.
END_SECONDS = 5.0


@contextmanager
def alarm_threads(stop: StopFlag, heartbeat: Heartbeat) -> Iterator[None]:
    """Judge alarms, unless another process does, and send notifications until ``stop``; the block works meanwhile."""
    duty = AlarmDuty(stop.watched(heartbeat.loop()))
    watch = KafkaWatch(stop, lambda: duty.judged_at)
    notifier = Notifier(stop, lambda: duty.judged_at)
    for thread in (duty, watch, notifier):
        thread.start()
    try:
        yield
    finally:
        for thread in (duty, watch, notifier):
            thread.end()


class Notifier(threading.Thread):
    """Sends notifications, whichever process judges, and calls the dead man's switch while this process judges.

    ``judged_at`` returns when this process last judged the alarms, on the monotonic clock; None if it never did.
    """

    def __init__(self, stop: StopFlag, judged_at: Callable[[], float | None]) -> None:
        super().__init__(name="notifications", daemon=True)
        self._stop_flag = stop
        self._judged_at = judged_at
        self._deadman_due_at = 0.0
        self._log_limit = LogLimit(60.0)

    def end(self) -> None:
        """Wait a moment for the thread, once the process was asked to stop; a row in a call is sent again later."""
        self.join(END_SECONDS)

    def run(self) -> None:
        """Send until the process stops; an error is logged and ends nothing."""
        try:
            while not self._stop_flag:
                try:
                    # Between two notifications as well: a slow webhook must not keep the switch waiting.
                    self._call_deadman_if_due()
                    is_busy = send_next()
                except Exception as error:
                    is_busy = False
                    if self._log_limit.due("error"):
                        logger.warning("notifications of alerts wait, nothing is lost: %s", first_line(error))
                    drop_connection()
                if not is_busy:
                    self._stop_flag.wait(POLL_SECONDS)
        finally:
            drop_connection()

    def _call_deadman_if_due(self) -> None:
        now = time.monotonic()
        if settings.ALERT_DEADMAN_URL and is_recent(self._judged_at()) and now >= self._deadman_due_at:
            self._deadman_due_at = now + (DEADMAN_SECONDS if call_deadman() else DEADMAN_RETRY_SECONDS)
