"""How the pages write numbers, durations, sizes and times."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from couponsite.templatetags.ops import duration, grouped, milliseconds, moment, number, size


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (None, "-"), (0, "0.0 s"), (0.44, "0.4 s"), (9.94, "9.9 s"), (12.4, "12 s"), (59.6, "1 min"), (61, "1 min 1 s"),
        (3600, "1 h"), (3665, "1 h 1 min"), (86_399, "23 h 59 min"), (180_000, "2 d 2 h"), (-75, "-1 min 15 s"),
        (timedelta(minutes=3, seconds=5), "3 min 5 s"),
    ],
)  # fmt: skip
def test_a_duration_has_its_two_largest_units(seconds: float | None, written: str) -> None:
    assert duration(seconds) == written


@pytest.mark.parametrize(("value", "written"), [(None, "-"), (0, "0 ms"), (350.4, "350 ms"), (12_000, "12 s")])
def test_milliseconds_become_a_duration(value: float | None, written: str) -> None:
    assert milliseconds(value) == written


@pytest.mark.parametrize(("value", "written"), [(None, "-"), (0, "0"), (1_234_567, "1,234,567"), (-1000, "-1,000")])
def test_thousands_stand_apart(value: int | None, written: str) -> None:
    assert grouped(value) == written


@pytest.mark.parametrize(
    ("value", "written"), [(None, "-"), (0.0, "0"), (1200.0, "1,200"), (99.9, "99.9"), (20.506, "20.51"), (100, "100")]
)
def test_a_number_has_at_most_two_decimals(value: float | None, written: str) -> None:
    assert number(value) == written


@pytest.mark.parametrize(
    ("value", "written"),
    [(None, "-"), (0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (41_400_000, "41.4 MB"), (123_456_789, "123 MB"),
     (2**63, "9223372 TB")],
)  # fmt: skip
def test_a_size_has_three_digits_and_a_unit(value: int | None, written: str) -> None:
    assert size(value) == written


def test_a_time_is_written_in_utc_and_readable_by_machines() -> None:
    seoul = datetime(2026, 7, 1, 12, 0, 59, 999_000, timezone(timedelta(hours=9)))
    assert moment(seoul) == '<time datetime="2026-07-01T03:00:59.999+00:00">2026-07-01 03:00:59</time>'
    assert moment(seoul.astimezone(UTC)) == moment(seoul)
    assert moment(None) == "-"
