"""Threads take database connections in turn, and hold none while they wait for each other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import connection

from common.group_commit import GroupCommit
from common.processes import slots
from common.processes.slots import Slots
from devstack.processes import wait_until

pytestmark = pytest.mark.django_db(transaction=True)


def backend() -> int:
    """The server process behind this thread's connection."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (pid,) = cursor.fetchone() or (0,)
    return int(pid)


@pytest.fixture
def one(transactional_db: None) -> Iterator[Slots]:
    """A single slot, whose session is closed at the end."""
    one = Slots(1)
    yield one

    def close() -> None:
        assert one.take(10)
        connection.close()
        one.give_back()

    in_a_thread(close)


def in_a_thread(work: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result(20)


def test_threads_share_the_session_of_a_slot(one: Slots) -> None:
    def use() -> int:
        assert one.take(1)
        try:
            return backend()
        finally:
            one.give_back()

    assert in_a_thread(use) == in_a_thread(use)


def test_who_gets_no_slot_in_time_knows(one: Slots) -> None:
    def use() -> None:
        assert one.take(1)
        assert in_a_thread(lambda: one.take(0.05)) is False
        one.give_back()
        # The one who gave up is not in line any more.
        assert one.take(1)
        one.give_back()

    in_a_thread(use)


def test_slots_go_to_those_who_came_first_and_before_them_to_those_with_work_under_way(one: Slots) -> None:
    order: list[str] = []
    held, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        assert one.take(1)
        held.set()
        let_go.wait(10)
        one.give_back()

    def want(name: str) -> None:
        if name == "under way":
            one.take_again()
        else:
            assert one.take(10)
        order.append(name)
        one.give_back()

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(hold)]
        held.wait(10)
        for number, name in enumerate(["first", "second", "under way"], start=1):
            futures.append(pool.submit(want, name))
            wait_until(lambda number=number: len(one._waiting) == number, 10, f"{name} does not wait")  # type: ignore[misc]
        let_go.set()
        for future in futures:
            future.result(10)
    assert order == ["under way", "first", "second"]


def test_who_waits_in_line_for_a_group_commit_holds_no_slot(one: Slots) -> None:
    go_on = threading.Event()
    rounds: list[list[int]] = []

    def work(items: Sequence[int]) -> list[int]:
        rounds.append(list(items))
        assert go_on.wait(10)
        return [backend() for _ in items]

    group: GroupCommit[int, int] = GroupCommit(work, patience=10)

    def leads_without_a_slot() -> int:
        try:
            return group.submit(0)
        finally:
            connection.close()

    def waits(item: int) -> bool:
        assert one.take(10)
        group.submit(item)
        return slots.give_back() is None

    with ThreadPoolExecutor(4) as pool:
        leader = pool.submit(leads_without_a_slot)
        wait_until(lambda: rounds, 10, "no round began")
        others = [pool.submit(waits, item) for item in (1, 2, 3)]
        # All three are in line, though there is one slot.
        wait_until(lambda: len(group._waiting) == 3, 10, "a thread keeps its slot while it waits")
        go_on.set()
        leader.result(10)
        # One of them leads, in the slot. The others have their results from it and need none any more.
        assert sorted(future.result(10) for future in others) == [False, True, True]
