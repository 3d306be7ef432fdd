"""Group commit in an event loop: calls of the same turn share one call of the work, in a worker thread."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Generic, TypeVar

from common.group_commit import WaitedTooLong

Item = TypeVar("Item")
Result = TypeVar("Result")


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
        self._waiting: deque[tuple[float, Item, asyncio.Future[Result]]] = deque()
        self._running = False
        self._timer: asyncio.TimerHandle | None = None

    def submit(self, item: Item) -> asyncio.Future[Result]:
        """Return the future of the item's result; it raises what ``work`` raises.

        It raises WaitedTooLong if no round took the item within ``patience``: no work was done for it.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        self._waiting.append((time.monotonic(), item, future))
        if not self._running:
            self._running = True
            loop.call_soon(self._begin)
        elif self._timer is None:
            self._timer = loop.call_later(self._patience, self._expire)
        return future

    def _begin(self) -> None:
        count = min(len(self._waiting), self._limit)
        if not count:
            self._running = False
            return
        entries = [self._waiting.popleft() for _ in range(count)]
        loop = asyncio.get_running_loop()

        def run() -> None:
            results: Sequence[Result] = ()
            error: BaseException | None = None
            try:
                results = self._work([item for _, item, _ in entries])
                if len(results) != len(entries):
                    raise RuntimeError(f"{len(results)} results for {len(entries)} items")
            except BaseException as raised:
                error = raised
            loop.call_soon_threadsafe(self._finish, entries, results, error)

        self._executor.submit(run)

    def _finish(
        self,
        entries: Sequence[tuple[float, Item, asyncio.Future[Result]]],
        results: Sequence[Result],
        error: BaseException | None,
    ) -> None:
        if error is not None:
            for _, _, future in entries:
                if not future.done():
                    future.set_exception(error)
        else:
            for (_, _, future), result in zip(entries, results, strict=True):
                # A caller that was cancelled has left; its work was done all the same.
                if not future.done():
                    future.set_result(result)
        self._begin()

    def _expire(self) -> None:
        """Take out the items that have waited too long, and look again when the next one is due."""
        self._timer = None
        now = time.monotonic()
        while self._waiting and now - self._waiting[0][0] >= self._patience:
            _, _, future = self._waiting.popleft()
            if not future.done():
                future.set_exception(WaitedTooLong(f"no group commit within {self._patience:g} s"))
        if self._waiting:
            delay = self._patience - (now - self._waiting[0][0])
            self._timer = asyncio.get_running_loop().call_later(delay, self._expire)
