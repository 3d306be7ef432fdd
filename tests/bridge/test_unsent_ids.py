"""The arithmetic of unsent ids, against plain sets."""

from __future__ import annotations

from collections.abc import Collection

from hypothesis import given
from hypothesis import strategies as st

from kafka_bridge.relaying.unsent_ids import UnsentIds

LAST = 40
ids = st.sets(st.integers(1, LAST))


def unsent_without(sent: Collection[int]) -> UnsentIds:
    return UnsentIds.after(0).without(sorted(sent))


def as_set(unsent: UnsentIds) -> set[int]:
    return {row_id for row_id in range(1, LAST + 2) if row_id in unsent}


def expected(sent: Collection[int]) -> set[int]:
    return set(range(1, LAST + 2)) - set(sent)


@given(ids, ids)
def test_ids_that_are_sent_are_no_longer_in_the_set(first: set[int], second: set[int]) -> None:
    assert as_set(unsent_without(first).without(sorted(second))) == expected(first | second)


@given(ids, ids)
def test_union_and_intersection_are_those_of_sets(one: set[int], other: set[int]) -> None:
    assert as_set(unsent_without(one) | unsent_without(other)) == expected(one & other)
    assert as_set(unsent_without(one) & unsent_without(other)) == expected(one | other)


@given(ids, st.integers(0, LAST))
def test_ids_under_the_settled_mark_are_dropped(sent: set[int], settled: int) -> None:
    assert as_set(unsent_without(sent).without_up_to(settled)) == expected({*sent, *range(1, settled + 1)})


@given(ids)
def test_equal_sets_have_equal_ranges(sent: set[int]) -> None:
    one_by_one = UnsentIds.after(0)
    for row_id in sorted(sent, reverse=True):
        one_by_one = one_by_one.without([row_id])
    assert one_by_one == unsent_without(sent)
    assert one_by_one == UnsentIds.after(one_by_one.sent_through, one_by_one.gaps)


@given(ids)
def test_everything_up_to_the_position_is_sent(sent: set[int]) -> None:
    unsent = unsent_without(sent)
    assert unsent.position == min(as_set(unsent)) - 1
    assert unsent.sent_through == max(sent, default=0)


def test_with_more_than_a_thousand_gaps_the_stored_set_ends_earlier_and_claims_nothing_more() -> None:
    unsent = UnsentIds.after(0).without(list(range(2, 5000, 2)))
    stored = unsent.storable()
    assert len(stored.gaps) == 1000
    assert stored.sent_through == 2000
    assert (stored | unsent) == stored
    assert stored.storable() == stored
