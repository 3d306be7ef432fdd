"""Two database sessions in one test, and a way to know that one waits for the other."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

from django.db import connection, transaction

from devstack.processes import wait_until


class OpenTransaction:
    """Runs ``work`` in a transaction of another session and leaves it open until ``commit`` or ``rollback``."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work
        self._done = threading.Event()
        self._end = threading.Event()
        self._keep = True
        self._pool = ThreadPoolExecutor(1)

    def __enter__(self) -> Self:
        self._future = self._pool.submit(self._run)
        self._done.wait(10)
        if self._future.done():
            self._future.result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._end.is_set():
            self.rollback()
        self._pool.shutdown()

    def commit(self) -> None:
        self._finish(keep=True)

    def rollback(self) -> None:
        self._finish(keep=False)

    def _finish(self, *, keep: bool) -> None:
        self._keep = keep
        self._end.set()
        self._future.result(10)

    def _run(self) -> None:
        try:
            with transaction.atomic():
                self._work()
                self._done.set()
                self._end.wait(30)
                if not self._keep:
                    transaction.set_rollback(True)
        finally:
            self._done.set()
            connection.close()


def in_another_session(work: Callable[[], Any]) -> Future[Any]:
    """Starts ``work`` in a thread with a database session of its own."""

    def run() -> Any:
        try:
            return work()
        finally:
            connection.close()

    pool = ThreadPoolExecutor(1)
    future = pool.submit(run)
    pool.shutdown(wait=False)
    return future


def wait_until_blocked(sessions: int = 1, *, beside: Future[Any] | None = None) -> None:
    """Waits until that many sessions of this database wait for a lock, or the one ``beside`` has ended."""

    def blocked() -> bool:
        if beside is not None and beside.done():
            return True
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE datname = current_database() AND cardinality(pg_blocking_pids(pid)) > 0"
            )
            (number,) = cursor.fetchone() or (0,)
        return bool(number >= sessions)

    wait_until(blocked, 10, "no session waits for a lock")


def lock(sql: str, *parameters: int) -> OpenTransaction:
    """Another session that holds what ``sql`` locks."""

    def work() -> None:
        with connection.cursor() as cursor:
            cursor.execute(sql, parameters)

    return OpenTransaction(work)
