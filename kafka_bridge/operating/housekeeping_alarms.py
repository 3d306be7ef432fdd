"""The alarm about housekeeping: a table that nothing prunes fills the disk."""

from __future__ import annotations

from collections.abc import Iterator

from django.conf import settings

from common.postgres.limited_reads import limited_read

from .alerts import alert_rule
from .evaluation import Condition, register_judge
from .housekeeping import housekeeping_tasks

HOUSEKEEPING_BEHIND = alert_rule("housekeeping-behind", "warning", settings=("ALERT_HOUSEKEEPING_MINUTES",))

# One row per task.
FAILING_SECONDS = 150.0
_RUNS = """
    SELECT task, failure, date_trunc('second', succeeded_at AT TIME ZONE 'UTC')::text,
           coalesce(succeeded_at < statement_timestamp() - %(minutes)s * interval '1 minute', true)
    FROM kafka_bridge_housekeepingrun
"""


def register() -> None:
    """Register the judge; called once, when the app is ready."""
    register_judge([HOUSEKEEPING_BEHIND], judge_housekeeping)


def judge_housekeeping() -> Iterator[Condition]:
    """Yield one condition that names the tasks that failed, or have not succeeded for ``ALERT_HOUSEKEEPING_MINUTES``.

    A task that has never run is late once this process has judged for so long.
    """
    minutes = settings.ALERT_HOUSEKEEPING_MINUTES
    if not minutes:
        return
    runs = {task: run for task, *run in limited_read(_RUNS, {"minutes": minutes})}
    names = [task.name for task in housekeeping_tasks()]
    late: list[str] = []
    failed: list[str] = []
    for name in names:
        if name not in runs:
            continue
        failure, succeeded_at, is_late = runs[name]
        if failure:
            failed.append(f"{name} failed: {failure}")
        elif is_late:
            late.append(f"{name} has not succeeded since {succeeded_at} UTC")
    if late or failed:
        # A failure may be a lock, or a service that is away for a moment: the next run is a minute later.
        seconds = 0.0 if late else FAILING_SECONDS
        yield Condition(HOUSEKEEPING_BEHIND, "; ".join([*failed, *late]), for_seconds=seconds)
    elif never := [name for name in names if name not in runs]:
        yield Condition(
            HOUSEKEEPING_BEHIND,
            f"{', '.join(never)} have never run: is a housekeeper running?",
            for_seconds=60.0 * minutes,
        )
