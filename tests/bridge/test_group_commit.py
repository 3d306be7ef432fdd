"""Threads that come while another one works share the next round, and each gets its own result."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from common.group_commit import GroupCommit, WaitedTooLong
from devstack.processes import wait_until


class Work:
    """Doubles numbers, held up until told to go on; refuses a round with a negative number."""

    def __init__(self) -> None:
        self.rounds: list[list[int]] = []
        self.go_on = threading.Event()

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.rounds.append(list(items))
        self.go_on.wait(10)
        if any(item < 0 for item in items):
            raise ValueError("a negative number")
        return [item * 2 for item in items]


def test_one_caller_alone_is_served_at_once() -> None:
    work = Work()
    work.go_on.set()
    assert GroupCommit(work).submit(4) == 8
    assert work.rounds == [[4]]


@pytest.mark.parametrize(("limit", "sizes"), [(500, [1, 9]), (4, [1, 4, 4, 1])])
def test_those_who_come_meanwhile_share_rounds(limit: int, sizes: list[int]) -> None:
    work = Work()
    group = GroupCommit(work, limit=limit)
    with ThreadPoolExecutor(10) as pool:
        first = pool.submit(group.submit, 0)
        wait_until(lambda: work.rounds, 10, "no round began")
        others = [pool.submit(group.submit, number) for number in range(1, 10)]
        wait_until(lambda: len(group._waiting) == 9, 10, "not all calls wait")
        work.go_on.set()
        assert [future.result(10) for future in [first, *others]] == [number * 2 for number in range(10)]
    assert [len(round_) for round_ in work.rounds] == sizes


def test_an_error_is_everybodys_of_that_round_and_nobody_elses() -> None:
    work = Work()
    group = GroupCommit(work)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(group.submit, 1)
        wait_until(lambda: work.rounds, 10, "no round began")
        others = [pool.submit(group.submit, number) for number in (2, -3)]
        wait_until(lambda: len(group._waiting) == 2, 10, "not all calls wait")
        work.go_on.set()
        assert first.result(10) == 2
        for future in others:
            with pytest.raises(ValueError, match="negative"):
                future.result(10)
    assert group.submit(5) == 10


def test_who_waits_too_long_in_line_is_out_of_it_and_no_work_is_done_for_it() -> None:
    work = Work()
    group = GroupCommit(work, patience=0.05)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(group.submit, 0)
        wait_until(lambda: work.rounds, 10, "no round began")
        for future in [pool.submit(group.submit, number) for number in (1, 2)]:
            with pytest.raises(WaitedTooLong):
                future.result(10)
        work.go_on.set()
        assert first.result(10) == 0
    assert group.submit(3) == 6
    assert work.rounds == [[0], [3]]


def test_who_is_in_a_round_waits_for_its_result_however_long_it_takes() -> None:
    go_on, patience = threading.Event(), 1.0
    rounds: list[list[int]] = []

    def work(items: Sequence[int]) -> list[int]:
        rounds.append(list(items))
        if not go_on.wait(10 if len(rounds) == 1 else 0):
            raise AssertionError("it was not let go on")
        if len(rounds) == 2:
            threading.Event().wait(patience * 1.2)
        return [item * 2 for item in items]

    group = GroupCommit(work, patience=patience)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(group.submit, 0)
        wait_until(lambda: rounds, 10, "no round began")
        others = [pool.submit(group.submit, number) for number in (1, 2)]
        wait_until(lambda: len(group._waiting) == 2, 10, "not all calls wait")
        go_on.set()
        assert first.result(10) == 0
        assert sorted(future.result(10) for future in others) == [2, 4]


def test_many_threads_all_get_their_own() -> None:
    group: GroupCommit[int, int] = GroupCommit(lambda items: [item + 1 for item in items])
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(group.submit, range(5000))) == list(range(1, 5001))
