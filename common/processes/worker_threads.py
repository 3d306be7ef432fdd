"""Work in threads that outlive their database connections."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from django.db import close_old_connections

from common.postgres.connections import close_dead_connections, drop_connections
from common.processes.outages import is_over_limit, is_transient

Item = TypeVar("Item")
Result = TypeVar("Result")


def on_live_connections(
    work: Callable[[Sequence[Item]], Sequence[Result]],
) -> Callable[[Sequence[Item]], Sequence[Result]]:
    """Wrap work for a thread that outlives its connections, as Django's request signals do for a request."""

    def call(items: Sequence[Item]) -> Sequence[Result]:
        close_dead_connections()
        try:
            return work(items)
        except BaseException as error:
            # After a statement or lock timeout the connection still works.
            if is_transient(error) and not is_over_limit(error):
                drop_connections()
            raise
        finally:
            close_old_connections()

    return call
