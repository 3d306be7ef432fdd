"""A fixed pool of database connections of a web process, taken in turn by the threads that need one.

Waiting threads are cheap, PostgreSQL sessions are not. So every request has its own thread, also while its body arrives
slowly or it waits for a group commit, and takes a slot only while it works.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from django.db import DEFAULT_DB_ALIAS, connections
from django.db.backends.base.base import BaseDatabaseWrapper


class Slots:
    """``size`` slots, each with a connection that stays open from thread to thread."""

    def __init__(self, size: int) -> None:
        self._lock = threading.Lock()
        self._free = [_new_connection() for _ in range(size)]
        self._waiting: deque[_Waiter] = deque()

    def take(self, seconds: float, *, first: bool = False) -> bool:
        """Take a slot for this thread, first come, first served; False if none became free within ``seconds``.

        ``first``: ahead of all waiting threads. While the thread holds the slot, its default Django connection is the
        slot's connection.
        """
        connection = self._wait(seconds, first=first)
        if connection is None:
            return False
        connections[DEFAULT_DB_ALIAS] = connection
        _thread.held = self
        return True

    def take_again(self) -> None:
        """Take a slot ahead of all waiting threads, for a thread that released its slot in the middle of its work.

        Waits without a limit: every statement of a slot's holder has a timeout.
        """
        self.take(-1, first=True)

    def give_back(self) -> None:
        """Release the slot that this thread holds; does nothing if it holds none of these."""
        if _thread.held is not self:
            return
        connection = connections[DEFAULT_DB_ALIAS]
        del connections[DEFAULT_DB_ALIAS]
        _thread.held = None
        with self._lock:
            if self._waiting:
                waiter = self._waiting.popleft()
                waiter.connection = connection
                waiter.wake.release()
            else:
                self._free.append(connection)

    def _wait(self, seconds: float, *, first: bool) -> BaseDatabaseWrapper | None:
        with self._lock:
            if self._free:
                # The most recently used connection: with few requests few sessions stay open.
                return self._free.pop()
            waiter = _Waiter()
            if first:
                self._waiting.appendleft(waiter)
            else:
                self._waiting.append(waiter)
        if not waiter.wake.acquire(timeout=seconds):
            with self._lock:
                if waiter.connection is None:
                    self._waiting.remove(waiter)
        return waiter.connection


class _Waiter:
    __slots__ = ("connection", "wake")

    def __init__(self) -> None:
        self.connection: BaseDatabaseWrapper | None = None
        self.wake = threading.Lock()
        self.wake.acquire()


class _Thread(threading.local):
    held: Slots | None = None


_thread = _Thread()


def give_back() -> Slots | None:
    """Release the slot that this thread holds, before it waits for other threads.

    Returns the Slots to call ``take_again`` on, None if the thread held no slot.
    """
    held = _thread.held
    if held is not None:
        held.give_back()
    return held


@contextmanager
def set_aside() -> Iterator[None]:
    """Hold no slot inside the block, for calls to an external service. Must not be used inside a transaction."""
    held = give_back()
    try:
        yield
    finally:
        if held is not None:
            held.take_again()


def _new_connection() -> BaseDatabaseWrapper:
    connection = connections.create_connection(DEFAULT_DB_ALIAS)
    # Django refuses a connection in a thread that did not create it, unless sharing is allowed.
    connection.inc_thread_sharing()
    return connection
