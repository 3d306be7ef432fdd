"""What is said of the topics would be said: each check finds what it is there for."""

from __future__ import annotations

from uuid import UUID

from tests.cluster.history import (
    Offsets,
    Record,
    displaced_results,
    first_copies,
    lost_events,
    overtaken_requests,
    scattered_keys,
    undecided_before,
)
from tests.cluster.load import Span

A, B, C = (UUID(int=number) for number in (1, 2, 3))


def test_a_request_that_overtook_an_answered_one_is_found() -> None:
    spans = {A: Span(0, 1), B: Span(2, 5), C: Span(3, 4)}
    assert overtaken_requests([A, B, C], spans) == []
    assert overtaken_requests([A, C, B], spans) == []
    (line,) = overtaken_requests([C, A, B], spans)
    assert f"{C} overtook {A}" in line


def test_only_first_copies_count() -> None:
    records = [Record(0, offset, b"K", event_id) for offset, event_id in enumerate([A, B, A, C, B])]
    assert first_copies(records) == {b"K": [A, B, C]}


def test_a_result_that_overtook_another_of_its_coupon_is_found() -> None:
    assert displaced_results([A, C], [A, B, C]) == []
    (line,) = displaced_results([C, A], [A, B, C])
    assert f"{C} overtook {A}" in line


def test_a_lost_event_and_a_foreign_message_are_found() -> None:
    records = [Record(0, 0, b"K", A), Record(0, 1, b"K", B)]
    assert lost_events(records, [A, B]) == []
    assert len(lost_events(records, [A, C])) == 2


def test_a_key_on_two_partitions_is_found() -> None:
    assert scattered_keys([Record(0, 0, b"K", A), Record(0, 1, b"K", B)]) == []
    assert scattered_keys([Record(0, 0, b"K", A), Record(1, 0, b"K", B)])


def test_an_offset_ahead_of_its_decision_is_found() -> None:
    records = [Record(0, 0, b"K", A), Record(0, 1, b"K", B), Record(1, 0, b"L", C)]
    assert undecided_before(Offsets({0: 1}, {A}), records) == []
    (line,) = undecided_before(Offsets({0: 2, 1: 0}, {A}), records)
    assert f"request {B} at 1" in line
