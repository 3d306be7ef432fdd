"""Group commit in an event loop: what shares a round, how long items wait, and what an error concerns."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from common.async_group_commit import AsyncGroupCommit
from common.group_commit import TooManyInProgress, WaitedTooLong
from common.in_progress import LEAST


@pytest.fixture
def executor() -> Any:
    with ThreadPoolExecutor(1) as pool:
        yield pool


class Rounds:
    """Work that records its rounds; ``hold()`` keeps a round from ending until ``go`` is set."""

    def __init__(self) -> None:
        self.rounds: list[list[int]] = []
        self.go = threading.Event()
        self.go.set()
        self.began = threading.Event()

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.rounds.append(list(items))
        self.began.set()
        assert self.go.wait(10)
        if 13 in items:
            raise ValueError("thirteen")
        return [-item for item in items]


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), 30))


def test_the_items_of_a_turn_share_a_round(executor: ThreadPoolExecutor) -> None:
    work = Rounds()

    async def main() -> None:
        committer = AsyncGroupCommit(work, executor)
        assert await asyncio.gather(*(committer.submit(n) for n in range(20, 120))) == [-n for n in range(20, 120)]

    run(main)
    assert work.rounds == [list(range(20, 120))]


def test_items_that_come_during_a_round_share_the_next_within_the_limit(executor: ThreadPoolExecutor) -> None:
    work = Rounds()

    async def main() -> None:
        committer = AsyncGroupCommit(work, executor, limit=3)
        work.go.clear()
        first = committer.submit(1)
        await asyncio.to_thread(work.began.wait)
        others = [committer.submit(n) for n in range(2, 7)]
        work.go.set()
        assert await asyncio.gather(first, *others) == [-n for n in range(1, 7)]

    run(main)
    assert work.rounds == [[1], [2, 3, 4], [5, 6]]


def test_an_item_that_waits_too_long_is_taken_out_and_not_executed(executor: ThreadPoolExecutor) -> None:
    work = Rounds()

    async def main() -> None:
        committer = AsyncGroupCommit(work, executor, patience=0.05)
        work.go.clear()
        first = committer.submit(1)
        await asyncio.to_thread(work.began.wait)
        late = [committer.submit(n) for n in (2, 3)]
        for future in late:
            with pytest.raises(WaitedTooLong):
                await future
        work.go.set()
        assert await first == -1
        assert await committer.submit(4) == -4

    run(main)
    assert work.rounds == [[1], [4]]


def test_an_item_that_waits_for_a_thread_waits_no_longer_than_the_others(executor: ThreadPoolExecutor) -> None:
    busy, work = Rounds(), Rounds()

    async def main() -> None:
        busy.go.clear()
        other = AsyncGroupCommit(busy, executor).submit(1)
        await asyncio.to_thread(busy.began.wait)
        with pytest.raises(WaitedTooLong):
            await AsyncGroupCommit(work, executor, patience=0.05).submit(2)
        busy.go.set()
        assert await other == -1

    run(main)
    assert work.rounds == []


def test_items_past_the_limit_are_refused_at_once_and_take_nothing_from_other_committers(
    executor: ThreadPoolExecutor,
) -> None:
    held = Rounds()

    async def main() -> None:
        held.go.clear()
        committer = AsyncGroupCommit(held, executor)
        futures = [committer.submit(-number) for number in range(LEAST)]
        with pytest.raises(TooManyInProgress):
            committer.submit(1)
        other = AsyncGroupCommit(Rounds(), executor).submit(2)
        held.go.set()
        assert await asyncio.gather(*futures) == list(range(LEAST))
        assert await other == -2
        assert await committer.submit(3) == -3

    run(main)


def test_an_error_concerns_its_round_alone(executor: ThreadPoolExecutor) -> None:
    work = Rounds()

    async def main() -> None:
        committer = AsyncGroupCommit(work, executor)
        outcomes = await asyncio.gather(*(committer.submit(n) for n in (12, 13)), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [ValueError, ValueError]
        assert await committer.submit(14) == -14

    run(main)


def test_a_caller_that_leaves_takes_nothing_from_the_others(executor: ThreadPoolExecutor) -> None:
    work = Rounds()

    async def main() -> None:
        committer = AsyncGroupCommit(work, executor)
        futures = [committer.submit(n) for n in (1, 2)]
        futures[0].cancel()
        assert await futures[1] == -2

    run(main)
