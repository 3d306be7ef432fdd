from __future__ import annotations

import logging
import time
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from common.processes.lifecycle import StopFlag, check_database, drop_connection, first_line
from common.processes.outages import is_transient

from ...operating.alarm_threads import alarm_threads
from ...operating.housekeeping import HousekeepingReport, housekeep
from ...operating.worker_command import DAY_SECONDS, WorkerCommand, whole
from ...redriving.executor import redrive_thread

logger = logging.getLogger(__name__)

# A task with more to delete goes on at the next run, so that a large table does not keep the others waiting.
_TURN_SECONDS = 10.0


class Command(WorkerCommand):
    help = (
        "Deletes rows past their retention, table by table, in small batches. Runs once, or with --every until it is"
        " stopped; then it also judges the alarms, sends their notifications and executes redrives of dead letters."
    )

    needs = (check_database,)

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--every", type=whole(1, DAY_SECONDS), metavar="S", help="seconds between two runs")

    def handle(self, *args: Any, **options: Any) -> None:
        # Only the long-running process has a heartbeat.
        self.role = "housekeeper" if options["every"] else ""
        super().handle(*args, **options)

    def work(self, stop: StopFlag, **options: Any) -> None:
        if options["every"] is None:
            self._housekeep_once(stop)
            return
        with alarm_threads(stop, self.heartbeat), redrive_thread(stop):
            self._housekeep_until_stopped(stop.watched(self.heartbeat.loop()), options["every"])

    def _housekeep_once(self, stop: StopFlag) -> None:
        try:
            report = housekeep(stop)
        except Exception as error:
            if not is_transient(error):
                raise
            raise CommandError(f"the housekeeping was interrupted, run it again: {first_line(error)}") from error
        self.stdout.write(_summary(report))
        if report.failed:
            raise CommandError(f"not pruned: {', '.join(report.failed)}; the log has the error")

    def _housekeep_until_stopped(self, stop: StopFlag, every: int) -> None:
        while not stop:
            next_run_at = time.monotonic() + every
            try:
                housekeep(stop, turn_seconds=_TURN_SECONDS)
            except Exception as error:
                if not is_transient(error):
                    raise
                logger.warning("housekeeping failed, next run in %d s: %s", every, first_line(error))
                drop_connection()
            stop.wait(max(0.0, next_run_at - time.monotonic()))


def _summary(report: HousekeepingReport) -> str:
    deleted = ", ".join(f"{number} {name}" for name, number in report.deleted.items() if number)
    return f"deleted {deleted}" if deleted else "deleted nothing"
