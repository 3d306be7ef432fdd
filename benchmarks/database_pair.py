"""Two databases that are measured alternately, each by a thread with its own connection."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TypeVar

from django.db import connection

from coupons.models import Coupon

from . import seed_history
from .interleave import Prepare
from .sale import new_coupon
from .temporary import delete_redis_keys, empty_database, migrate

UNITS = 10**9
T = TypeVar("T")


class Side:
    """Runs work, one call at a time, in a thread whose Django connection uses one database."""

    def __init__(self, database: str, *, condition: str = "") -> None:
        """``condition`` describes the database in table rows: " over 300,000 old rows". Call ``close`` at the end."""
        self.condition = condition
        self._contexts = ExitStack()
        self._thread = ThreadPoolExecutor(1, initializer=_use_database, initargs=(database,))

    def run(self, work: Callable[[], T]) -> T:
        """Run ``work`` and return its result; raises what it raises."""
        return self._thread.submit(work).result()

    def enter(self, context: AbstractContextManager[T]) -> T:
        """Enter ``context`` and return its value; ``close`` leaves it."""
        return self.run(lambda: self._contexts.enter_context(context))

    def prepare(self, prepare: Prepare) -> Prepare:
        """Return a Prepare whose preparation and work run on this side."""

        def prepared() -> Callable[[], int]:
            work = self.run(prepare)
            return lambda: self.run(work)

        return prepared

    def close(self) -> None:
        """Leave the entered contexts and disconnect."""
        try:
            self.run(self._contexts.close)
            self.run(lambda: connection.close())
        finally:
            self._thread.shutdown()


@contextmanager
def sides(database: str, *, old_rows: int) -> Iterator[list[Side]]:
    """Yield a side of ``database`` and, unless ``old_rows`` is 0, one of a new database with so many old rows."""
    with ExitStack() as stack:
        opened = [Side(database)]
        stack.callback(opened[0].close)
        if old_rows:
            name = stack.enter_context(empty_database())
            old = Side(name, condition=f" over {old_rows:,} old rows")
            stack.callback(old.close)
            old.run(migrate)
            stack.callback(old.run, delete_redis_keys)
            old.run(lambda: seed_history.add(_hot_coupon(), old_rows))
            opened.append(old)
        yield opened


def _hot_coupon() -> Coupon:
    return new_coupon(UNITS)


def _use_database(database: str) -> None:
    connection.settings_dict = {**connection.settings_dict, "NAME": database}
