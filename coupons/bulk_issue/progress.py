"""Progress of a long command: a bar on a terminal, otherwise a log line per tenth."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

logger = logging.getLogger(__name__)

# Called with the number of lines done so far.
Report = Callable[[int], None]


@contextmanager
def progress(title: str, total: int) -> Iterator[Report]:
    """Yield a function that takes the number done of ``total`` and shows it on stderr."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _log_tenths(title, total)
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    )  # fmt: skip
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=total)
        yield lambda done: bar.update(task, completed=done)


def _log_tenths(title: str, total: int) -> Report:
    logged = 0

    def report(done: int) -> None:
        nonlocal logged
        if (tenth := 10 * done // max(total, 1)) > logged:
            logged = tenth
            logger.info("%s: %d of %d", title, done, total)

    return report
