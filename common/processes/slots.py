"""Database connections of a web process: a fixed number, taken in turn by the threads that need one.

Threads are cheap while they wait, sessions of PostgreSQL are not. So a request may have a thread of its own, for a body
that comes slowly or a line that stands still, and takes a slot only while it works.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from django.db import DEFAULT_DB_ALIAS, connections
from django.db.backends.base.base import BaseDatabaseWrapper


class Slots:
    """``size`` slots, each with a connection that stays open between the threads that use it."""

    def __init__(self, size: int) -> None:
        self._lock = threading.Lock()
        self._free = [_new_connection() for _ in range(size)]
        self._waiting: deque[_Waiter] = deque()

    def take(self, seconds: float) -> bool:
        """Take a slot for this thread, first come, first served; False if none was free for so long.

        Until it gives the slot back, Django's default connection of this thread is that of the slot.
        """
        return self._take(seconds, first=False)

    def take_again(self) -> None:
        """Take a slot before all others, for a thread that has given one back with work under way.

        Waits as long as it takes: those who hold a slot are limited in all they do.
        """
        self._take(-1, first=True)

    def give_back(self) -> None:
        """Give this thread's slot back, if it holds one."""
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

    def _take(self, seconds: float, *, first: bool) -> bool:
        connection = self._wait(seconds, first=first)
        if connection is None:
            return False
        connections[DEFAULT_DB_ALIAS] = connection
        _thread.held = self
        return True

    def _wait(self, seconds: float, *, first: bool) -> BaseDatabaseWrapper | None:
        with self._lock:
            if self._free:
                # The one used last: with few requests few sessions stay open.
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
    """Give back the slot that this thread holds, before it waits for other threads; returns whose slot that was."""
    held = _thread.held
    if held is not None:
        held.give_back()
    return held


@contextmanager
def set_aside() -> Iterator[None]:
    """Hold no slot meanwhile, for a call of a service outside. Not inside a transaction."""
    held = give_back()
    try:
        yield
    finally:
        if held is not None:
            held.take_again()


def _new_connection() -> BaseDatabaseWrapper:
    connection = connections.create_connection(DEFAULT_DB_ALIAS)
    # Its threads take turns.
    connection.inc_thread_sharing()
    return connection
