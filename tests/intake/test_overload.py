"""How many calls may be in progress before further ones are refused."""

from __future__ import annotations

from common.in_progress import LEAST, InProgress


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_on_an_idle_process_is_admitted_up_to_the_least() -> None:
    calls = InProgress(Clock())
    assert [calls.begin() for _ in range(LEAST + 1)] == [True] * LEAST + [False]
    calls.end()
    assert calls.begin()
    assert not calls.begin()


def test_a_fast_process_admits_as_many_as_it_answers_in_half_a_second() -> None:
    clock = Clock()
    calls = InProgress(clock)
    for _ in range(4000):
        assert calls.begin()
        clock.now += 0.00025
        calls.end()
    admitted = 0
    while calls.begin():
        admitted += 1
    assert 1900 <= admitted <= 2100


def test_a_process_that_became_slow_admits_fewer_again() -> None:
    clock = Clock()
    calls = InProgress(clock)
    for seconds in (0.00025, 0.01):
        for _ in range(4000):
            assert calls.begin()
            clock.now += seconds
            calls.end()
    assert [calls.begin() for _ in range(LEAST + 1)] == [True] * LEAST + [False]
