"""Group commit: concurrent callers share one call of the work, as PostgreSQL's group commit shares one flush."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from .processes import slots

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Entry(Generic[Item, Result]):
    __slots__ = ("error", "item", "leads", "result", "wake")

    def __init__(self, item: Item) -> None:
        self.item = item
        self.result: Result
        self.error: BaseException | None = None
        self.leads = False
        self.wake = threading.Lock()
        self.wake.acquire()


class GroupCommit(Generic[Item, Result]):
    """Calls ``work`` with the items of all waiting threads, and returns to each its own result.

    A thread that finds no round running starts one at once, alone: an idle service adds no wait. Threads that arrive
    during a round wait for the next one, which the first of them leads. ``work`` returns one result per item, in order.
    Its exception is raised in every thread of the round: if the work ends with a commit, the outcome may be unknown.

    A waiting thread holds no slot, see ``slots``: a round that waits for a lock occupies one database connection,
    however many threads wait behind it.
    """

    def __init__(
        self, work: Callable[[Sequence[Item]], Sequence[Result]], *, limit: int = 500, patience: float = 1.0
    ) -> None:
        """``limit``: most items in a round; ``patience``: most seconds that an item waits for its round to begin."""
        self._work = work
        self._limit = limit
        self._patience = patience
        self._lock = threading.Lock()
        self._waiting: list[_Entry[Item, Result]] = []
        self._running = False

    def submit(self, item: Item) -> Result:
        """Pass ``item`` to ``work``, together with others, and return its result; raises what ``work`` raises.

        Raises WaitedTooLong if no round took the item within ``patience``: it has left the queue, and no work was done.
        """
        entry: _Entry[Item, Result] = _Entry(item)
        with self._lock:
            self._waiting.append(entry)
            entry.leads, self._running = not self._running, True
        if entry.leads or self._wait_to_lead(entry):
            self._lead(entry)
        if entry.error is not None:
            raise entry.error
        return entry.result

    def _wait_to_lead(self, entry: _Entry[Item, Result]) -> bool:
        """Wait without a slot. Returns True to lead the next round, False once the entry has its result."""
        slot = slots.give_back()
        if not entry.wake.acquire(timeout=self._patience):
            with self._lock:
                if entry in self._waiting and not entry.leads:
                    self._waiting.remove(entry)
                    raise WaitedTooLong(f"no group commit within {self._patience:g} s")
            # Timed out too late: a round has taken the entry, or it leads the next one.
            entry.wake.acquire()
        if entry.leads and slot is not None:
            slot.take_again()
        return entry.leads

    def _lead(self, leader: _Entry[Item, Result]) -> None:
        with self._lock:
            # The leader is always the first entry.
            entries, self._waiting = self._waiting[: self._limit], self._waiting[self._limit :]
        try:
            results = self._work([entry.item for entry in entries])
            for entry, result in zip(entries, results, strict=True):
                entry.result = result
        except BaseException as error:
            for entry in entries:
                entry.error = error
        finally:
            self._wake_next_leader()
            for entry in entries:
                entry.leads = False
                if entry is not leader:
                    entry.wake.release()

    def _wake_next_leader(self) -> None:
        with self._lock:
            if self._waiting:
                self._waiting[0].leads = True
                self._waiting[0].wake.release()
            else:
                self._running = False


class WaitedTooLong(Exception):
    """No round took the item within ``patience``: no work was done for it."""


class TooManyInProgress(Exception):
    """More items are in progress than are finished in a reasonable time: the item was not taken."""
