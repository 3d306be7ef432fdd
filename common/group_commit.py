"""Callers of the same moment share one piece of work, as PostgreSQL's own group commit shares one flush."""

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
    """Calls ``work`` with the items of all threads that wait, and gives each its own result.

    Who finds nobody at work begins at once, alone: an idle service adds no wait. Whoever comes meanwhile waits for the
    next round, which one of them leads. ``work`` returns one result per item, in order; what it raises, all of the
    round raise: for work that ends with a commit that means that nobody knows whether it happened.

    A thread that waits holds no slot, see ``slots``: a round that waits for a lock keeps one database connection from
    others, however many wait behind it.
    """

    def __init__(
        self, work: Callable[[Sequence[Item]], Sequence[Result]], *, limit: int = 500, patience: float = 1.0
    ) -> None:
        """``limit`` items in a round; ``patience``: seconds in line before a round begins."""
        self._work = work
        self._limit = limit
        self._patience = patience
        self._lock = threading.Lock()
        self._waiting: list[_Entry[Item, Result]] = []
        self._busy = False

    def submit(self, item: Item) -> Result:
        """Have ``item`` worked on, together with others; raises what ``work`` raises.

        Raises WaitedTooLong for an item that no round has begun with in time: it is out of the line, and no work was
        done for it.
        """
        entry: _Entry[Item, Result] = _Entry(item)
        with self._lock:
            self._waiting.append(entry)
            entry.leads, self._busy = not self._busy, True
        if entry.leads or self._wait_to_lead(entry):
            self._lead(entry)
        if entry.error is not None:
            raise entry.error
        return entry.result

    def _wait_to_lead(self, entry: _Entry[Item, Result]) -> bool:
        """Wait in line, without a slot; returns whether to lead the next round, else the result is there."""
        slot = slots.give_back()
        if not entry.wake.acquire(timeout=self._patience):
            with self._lock:
                if entry in self._waiting and not entry.leads:
                    self._waiting.remove(entry)
                    raise WaitedTooLong(f"no group commit within {self._patience:g} s")
            # A round has begun with it, or it is to lead the next.
            entry.wake.acquire()
        if entry.leads and slot is not None:
            slot.take_again()
        return entry.leads

    def _lead(self, leader: _Entry[Item, Result]) -> None:
        with self._lock:
            # The leader is the first in line, or it would not lead.
            entries, self._waiting = self._waiting[: self._limit], self._waiting[self._limit :]
        try:
            results = self._work([entry.item for entry in entries])
            for entry, result in zip(entries, results, strict=True):
                entry.result = result
        except BaseException as error:
            for entry in entries:
                entry.error = error
        finally:
            self._hand_over()
            for entry in entries:
                entry.leads = False
                if entry is not leader:
                    entry.wake.release()

    def _hand_over(self) -> None:
        with self._lock:
            if self._waiting:
                self._waiting[0].leads = True
                self._waiting[0].wake.release()
            else:
                self._busy = False


class WaitedTooLong(Exception):
    """The wait in line before a group commit took too long: nothing was done for this caller."""
