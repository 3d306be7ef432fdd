"""Databases that take turns: each is worked on by a thread with a connection of its own."""

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
from .temporary import empty_database, forget, migrate

PIECES = 10**9
T = TypeVar("T")


class Side:
    """Runs work, one piece at a time, where Django's connection leads to one database, which has a coupon."""

    def __init__(self, database: str, *, condition: str = "") -> None:
        """``condition`` tells in words what is special about the database. End it with ``close``."""
        self.condition = condition
        self._contexts = ExitStack()
        self._thread = ThreadPoolExecutor(1, initializer=_lead_to, initargs=(database,))

    def run(self, work: Callable[[], T]) -> T:
        """What ``work`` returns, or raises."""
        return self._thread.submit(work).result()

    def enter(self, context: AbstractContextManager[T]) -> T:
        """The value of ``context``, which is left when the side is closed."""
        return self.run(lambda: self._contexts.enter_context(context))

    def prepare(self, prepare: Prepare) -> Prepare:
        """The same turn, prepared and worked on here."""

        def prepared() -> Callable[[], int]:
            work = self.run(prepare)
            return lambda: self.run(work)

        return prepared

    def close(self) -> None:
        """Leave what was entered and disconnect."""
        try:
            self.run(self._contexts.close)
            self.run(lambda: connection.close())
        finally:
            self._thread.shutdown()


@contextmanager
def sides(database: str, *, old_rows: int) -> Iterator[list[Side]]:
    """That database, and another one with ``old_rows`` in its tables unless that is 0."""
    with ExitStack() as stack:
        found = [Side(database)]
        stack.callback(found[0].close)
        if old_rows:
            name = stack.enter_context(empty_database())
            old = Side(name, condition=f" over {old_rows:,} old rows")
            stack.callback(old.close)
            old.run(migrate)
            stack.callback(old.run, forget)
            old.run(lambda: seed_history.add(_hot_coupon(), old_rows))
            found.append(old)
        yield found


def _hot_coupon() -> Coupon:
    return new_coupon(PIECES)


def _lead_to(database: str) -> None:
    connection.settings_dict = {**connection.settings_dict, "NAME": database}
