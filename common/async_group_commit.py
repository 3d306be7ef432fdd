"""Group commit in an event loop: calls of the same turn share one call of the work, in a worker thread."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from typing import Generic, TypeVar

from common.group_commit import TooManyInProgress, WaitedTooLong
from common.in_progress import InProgress

Item = TypeVar("Item")
Result = TypeVar("Result")

# Since when it waits (monotonic), the item, and the future of its result.
_Entry = tuple[float, Item, asyncio.Future[Result]]


class AsyncGroupCommit(Generic[Item, Result]):
    """Calls ``work`` with all waiting items, one round at a time, and gives each waiting caller its own result.

    The first item of an idle committer starts a round at the end of the loop's current turn, together with the other
    items of that turn. Items that arrive during a round wait for the next one. ``work`` runs in a thread of
    ``executor`` and returns one result per item, in order. Its exception is raised for every item of the round: if the
    work ends with a commit, the outcome may be unknown.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Item]], Sequence[Result]],
        executor: Executor,
        *,
        limit: int = 500,
        patience: float = 1.0,
    ) -> None:
        """``limit``: most items in a round; ``patience``: most seconds that an item waits for its round to begin."""
        self._work = work
        self._executor = executor
        self._limit = limit
        self._patience = patience
        self._waiting: deque[_Entry[Item, Result]] = deque()
        self._running = False
        self._timer: asyncio.TimerHandle | None = None
        self._in_progress = InProgress()

    def submit(self, item: Item) -> asyncio.Future[Result]:
        """Return the future of the item's result; it raises what ``work`` raises.

        It raises WaitedTooLong if no round took the item within ``patience``: no work was done for it. Raises
        TooManyInProgress at once while more items are in progress than are finished in half a second.
        """
        if not self._in_progress.begin():
            raise TooManyInProgress("too many items are in progress")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        self._waiting.append((time.monotonic(), item, future))
        if not self._running:
            self._running = True
            loop.call_soon(self._begin)
        if self._timer is None:
            self._timer = loop.call_later(self._patience, self._expire)
        return future

    def _begin(self) -> None:
        self._running = bool(self._waiting)
        if self._running:
            self._executor.submit(self._round, asyncio.get_running_loop())

    def _round(self, loop: asyncio.AbstractEventLoop) -> None:
        """Do the work, in a thread of the executor.

        The items are taken only now: while the executor has no free thread they still wait, and may wait too long.
        """
        entries: list[_Entry[Item, Result]] = []
        with suppress(IndexError):
            while len(entries) < self._limit:
                entries.append(self._waiting.popleft())
        results: Sequence[Result] = ()
        error: BaseException | None = None
        try:
            if entries:
                results = self._work([item for _, item, _ in entries])
            if len(results) != len(entries):
                raise RuntimeError(f"{len(results)} results for {len(entries)} items")
        except BaseException as raised:
            error = raised
        loop.call_soon_threadsafe(self._finish, entries, results, error)

    def _finish(
        self, entries: Sequence[_Entry[Item, Result]], results: Sequence[Result], error: BaseException | None
    ) -> None:
        for index, (_, _, future) in enumerate(entries):
            self._in_progress.end(is_answered=error is None)
            # Its caller was cancelled; the work was done all the same.
            if future.done():
                continue
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(results[index])
        self._begin()

    def _expire(self) -> None:
        """Take out the items that have waited too long, and set the timer for the next item."""
        self._timer = None
        now = time.monotonic()
        # A round may take items at the same time, in its thread.
        with suppress(IndexError):
            while True:
                entry = self._waiting.popleft()
                since, _, future = entry
                if now - since < self._patience:
                    self._waiting.appendleft(entry)
                    delay = self._patience - (now - since)
                    self._timer = asyncio.get_running_loop().call_later(delay, self._expire)
                    return
                self._in_progress.end(is_answered=False)
                if not future.done():
                    future.set_exception(WaitedTooLong(f"no group commit within {self._patience:g} s"))
