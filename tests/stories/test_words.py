"""Numbers and lists as the stories print them."""

from __future__ import annotations

import pytest

from demo.stories.rows import refused
from demo.stories.words import counted, listed


def test_a_number_has_its_noun_in_the_singular_or_plural() -> None:
    assert [counted(number, "coupon") for number in (0, 1, 2)] == ["0 coupons", "1 coupon", "2 coupons"]


@pytest.mark.parametrize(("items", "words"), [(["a"], "a"), (["a", "b"], "a and b"), (["a", "b", "c"], "a, b and c")])
def test_a_list_is_read_as_one(items: list[str], words: str) -> None:
    assert listed(items) == words


def test_refused_inserts_are_told_with_what_was_measured_between_them() -> None:
    assert refused([10.0, 11.04, 12.1]) == "PostgreSQL refused 3 inserts, 1.04 s and 1.06 s apart"
    assert refused([10.0]) == "PostgreSQL refused 1 insert"
