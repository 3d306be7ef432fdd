"""The pace of a provider as a pure object: a clock that the test turns, no provider, no waiting."""

from email.utils import formatdate
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.throttling import (
    ALONE_SECONDS,
    HIGHEST_PACE,
    LONGEST_WAIT,
    LOWEST_PACE,
    RAISE,
    Cause,
    Pace,
    ThrottledCalls,
    retry_after,
)

# 2026-03-01T09:00:00Z
NOW = 1772355600.0
BAD, OTHER = UUID(int=1), UUID(int=2)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def take(pace: Pace, clock: Clock) -> float:
    """Take the next turn, however long it is to wait for; returns when it starts."""
    while wait := pace.take():
        clock.now += wait
    return clock.now


def seconds_of(pace: Pace, clock: Clock, calls: int) -> float:
    began = take(pace, clock)
    for _ in range(calls):
        take(pace, clock)
    return clock.now - began


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7), ("0", 0), ("1.5", 1.5), (" 3 ", 3), ("301", LONGEST_WAIT), ("1000000000", LONGEST_WAIT),
        ("9" * 5000, LONGEST_WAIT),
        # The three formats of an HTTP-date; all are GMT.
        ("Sun, 01 Mar 2026 09:00:30 GMT", 30), ("Sunday, 01-Mar-26 09:00:30 GMT", 30), ("Sun Mar  1 09:00:30 2026", 30),
        ("Sun, 01 Mar 2026 08:00:00 GMT", 0), ("Wed, 21 Oct 2099 07:28:00 GMT", LONGEST_WAIT),
        (None, None), ("", None), ("-1", None), ("1e9", None), ("nan", None), ("inf", None), ("²", None), ("٣", None),
        ("soon", None), ("1, 2", None), ("Sun, 01 Mar 2026 09:00:30 KST", None), ("2026-03-01T09:00:30Z", None),
        ("Sun, 01 Mar 2026 09:00:30 +9999", None), ("Sun, 32 Mar 2026 09:00:30 GMT", None),
    ],
)  # fmt: skip
def test_retry_after_is_seconds_or_a_date_of_at_most_five_minutes(header: str | None, seconds: float | None) -> None:
    assert retry_after(header, now=NOW) == seconds


@given(st.text() | st.from_regex(r"\A[0-9]{1,6000}\Z") | st.from_regex(r"\A\w{3}, \d\d \w{3} \d{4} [\d:]{8} \w{3}\Z"))
def test_no_retry_after_header_is_an_error_or_a_long_wait(header: str) -> None:
    seconds = retry_after(header, now=NOW)
    assert seconds is None or 0 <= seconds <= LONGEST_WAIT


@given(st.integers(-1000, 1000))
def test_a_date_is_counted_from_the_time_of_the_provider(ahead: int) -> None:
    assert retry_after(formatdate(NOW + ahead, usegmt=True), now=NOW) == min(max(ahead, 0), LONGEST_WAIT)


def test_nothing_waits_before_the_provider_has_throttled() -> None:
    clock = Clock()
    assert seconds_of(Pace(clock), clock, 100) <= 0.1 + 1e-6


def test_a_throttled_call_closes_the_provider_and_halves_the_pace() -> None:
    clock = Clock()
    pace = Pace(clock)
    for _ in range(16):
        started_at = take(pace, clock)
    assert pace.throttled(started_at, 30.0)
    # Half of what was called in that second.
    assert pace.rate == 8.0
    assert pace.closed_for() == pytest.approx(30.0)
    throttled_at = clock.now
    first = take(pace, clock)
    assert first - throttled_at == pytest.approx(30.0)
    assert take(pace, clock) - first == pytest.approx(1 / 8)

    assert pace.throttled(clock.now, 1.0)
    assert pace.rate == 4.0


def test_the_calls_that_were_under_way_halve_the_pace_once() -> None:
    clock = Clock()
    pace = Pace(clock)
    started = [take(pace, clock) for _ in range(16)]
    clock.now += 0.1
    assert [pace.throttled(started_at, 1.0) for started_at in started] == [True] + [False] * 15
    assert pace.rate == 8.0
    # Nor do those that got through raise it; but the longest wait counts.
    pace.passed(started[0])
    pace.throttled(started[0], 7.0)
    assert pace.rate == 8.0
    assert pace.closed_for() == pytest.approx(7.0)


def test_the_pace_rises_by_one_call_a_second_each_second() -> None:
    clock = Clock()
    pace = Pace(clock)
    for _ in range(16):
        started_at = take(pace, clock)
    pace.throttled(started_at, 0.0)
    began, rate = clock.now, pace.rate
    while clock.now - began < 20:
        pace.passed(take(pace, clock))
    assert pace.rate == pytest.approx(rate + 20 * RAISE, rel=0.05)


@given(st.lists(st.tuples(st.booleans(), st.floats(0, LONGEST_WAIT), st.floats(0, 10)), max_size=200))
def test_whatever_the_provider_answers_the_pace_stays_in_its_range_and_no_call_starts_too_early(
    answers: list[tuple[bool, float, float]],
) -> None:
    clock = Clock()
    pace = Pace(clock)
    last, closed_until = float("-inf"), float("-inf")
    for throttles, wait, idle in answers:
        before = pace.rate
        started_at = take(pace, clock)
        assert started_at >= closed_until - 1e-6
        assert started_at - last >= 1 / before - 1e-6
        last = started_at
        if throttles:
            pace.throttled(started_at, wait)
            closed_until = max(closed_until, clock.now + wait)
            assert pace.rate <= max(LOWEST_PACE, before / 2)
        else:
            pace.passed(started_at)
            assert before <= pace.rate <= before + RAISE / before
        assert LOWEST_PACE <= pace.rate <= HIGHEST_PACE
        clock.now += idle


@pytest.mark.parametrize("limit", [1, 2, 5, 20, 100])
def test_the_pace_settles_near_what_the_provider_takes(limit: int) -> None:
    clock = Clock()
    pace = Pace(clock)
    began, second, left, taken = clock.now, float("-inf"), 0, 0
    while clock.now - began < 400:
        started_at = take(pace, clock)
        if clock.now - second >= 1:
            second, left = clock.now, limit
        left -= 1
        if left < 0:
            pace.throttled(started_at, 1.0)
            continue
        pace.passed(started_at)
        taken += clock.now - began > 200
    # Between the halves of a saw tooth, with a second of silence after each tooth.
    assert limit * 200 / 3 <= taken <= limit * 201


def test_a_call_that_is_throttled_for_an_hour_while_others_get_through_is_at_fault() -> None:
    clock = Clock()
    calls = ThrottledCalls(clock)
    first_at, causes = clock.now, [calls.throttled(BAD, 1.0)]
    while causes[-1] is not Cause.CALL_FOR_GOOD:
        assert 0 < calls.wait(BAD) <= LONGEST_WAIT
        calls.passed(OTHER)
        clock.now += calls.wait(BAD)
        assert clock.now - first_at <= ALONE_SECONDS + LONGEST_WAIT
        causes.append(calls.throttled(BAD, 1.0))
    assert causes[0] is Cause.PROVIDER
    assert set(causes[1:-1]) == {Cause.CALL}
    assert clock.now - first_at >= ALONE_SECONDS


def test_a_provider_that_throttles_every_call_for_hours_finds_none_at_fault() -> None:
    clock = Clock()
    calls = ThrottledCalls(clock)
    keys = [uuid4() for _ in range(20)]
    # At first one got through between two tries: that each is "alone" now must not last.
    for key in keys:
        calls.throttled(key, 1.0)
    calls.passed(OTHER)
    for key in keys:
        calls.throttled(key, 1.0)
    causes = set()
    for _ in range(100):
        clock.now += 200
        causes |= {calls.throttled(key, 1.0) for key in keys}
    assert Cause.CALL_FOR_GOOD not in causes


def test_a_call_that_got_through_has_no_past() -> None:
    clock = Clock()
    calls = ThrottledCalls(clock)
    calls.throttled(BAD, 60.0)
    assert calls.wait(BAD) > 60.0
    calls.passed(BAD)
    assert calls.wait(BAD) == 0.0
    calls.passed(OTHER)
    clock.now += ALONE_SECONDS
    assert calls.throttled(BAD, 1.0) is Cause.PROVIDER


def test_a_throttled_call_that_belongs_to_another_process_by_now_is_forgotten() -> None:
    clock = Clock()
    calls = ThrottledCalls(clock)
    calls.throttled(BAD, 5000.0)
    clock.now += 1000
    calls.throttled(OTHER, 1.0)
    assert calls.wait(BAD) == 0.0
