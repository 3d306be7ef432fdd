"""Housekeeping: every table that grows is pruned by a task with a retention of its own."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from django.db import connection

from common.processes.lifecycle import StopFlag, drop_connection, first_line
from common.processes.outages import is_transient

logger = logging.getLogger(__name__)

_RAN = """
    INSERT INTO kafka_bridge_housekeepingrun (task, ran_at, deleted, failure, succeeded_at)
    VALUES (%(task)s, statement_timestamp(), %(deleted)s, %(failure)s,
            CASE WHEN %(is_done)s THEN statement_timestamp() END)
    ON CONFLICT (task) DO UPDATE SET
        ran_at = EXCLUDED.ran_at, deleted = EXCLUDED.deleted, failure = EXCLUDED.failure,
        succeeded_at = coalesce(EXCLUDED.succeeded_at, kafka_bridge_housekeepingrun.succeeded_at)
"""


@dataclass(frozen=True, slots=True)
class HousekeepingTask:
    """Prunes one table in small batches until there is nothing to delete or the flag is set.

    ``prune`` returns the rows deleted, and may run at any time, also in two processes at once. ``setting`` names its
    retention.
    """

    name: str
    setting: str
    prune: Callable[[StopFlag], int]


class Turn(StopFlag):
    """Set by a stop of the process, and when the turn of a task is over: what is left waits for the next run."""

    def __init__(self, stop: StopFlag, seconds: float) -> None:
        super().__init__()
        self._stop = stop
        self._ends_at = time.monotonic() + seconds

    def __bool__(self) -> bool:
        return bool(self._stop) or time.monotonic() >= self._ends_at

    def request(self) -> None:
        self._stop.request()

    def wait(self, seconds: float) -> bool:
        self._stop.wait(seconds)
        return bool(self)


class HousekeepingReport(NamedTuple):
    """Rows deleted by task, and the tasks that failed."""

    deleted: dict[str, int]
    failed: list[str]


_tasks: dict[str, HousekeepingTask] = {}


def register_task(task: HousekeepingTask) -> None:
    """Register ``task``. Raises ValueError if its name is taken."""
    if _tasks.setdefault(task.name, task) is not task:
        raise ValueError(f"housekeeping task {task.name!r} is registered twice")


def housekeeping_tasks() -> list[HousekeepingTask]:
    """Return the registered tasks."""
    return list(_tasks.values())


def housekeep(stop: StopFlag, *, turn_seconds: float = float("inf")) -> HousekeepingReport:
    """Run every task once, each for ``turn_seconds`` at most.

    A task that fails, or whose table another session has locked, does not stop the others. Raises the error of a
    database that is away.
    """
    report = HousekeepingReport({}, [])
    for task in housekeeping_tasks():
        if stop:
            break
        failure = ""
        turn = Turn(stop, turn_seconds)
        try:
            report.deleted[task.name] = task.prune(turn)
        except Exception as error:
            failure = first_line(error)
            report.failed.append(task.name)
            _log_failure(task.name, error)
            drop_connection()
        deleted = report.deleted.get(task.name, 0)
        # If the database is away, this raises.
        with connection.cursor() as cursor:
            cursor.execute(
                _RAN, {"task": task.name, "deleted": deleted, "failure": failure, "is_done": not failure and not turn}
            )
        if deleted:
            logger.info("housekeeping: %d rows of %s deleted, past %s", deleted, task.name, task.setting)
    return report


def _log_failure(name: str, error: Exception) -> None:
    if is_transient(error):
        logger.warning("housekeeping: %s not pruned, again at the next run: %s", name, first_line(error))
    else:
        logger.error("housekeeping: %s failed, the other tasks continue", name, exc_info=error)
