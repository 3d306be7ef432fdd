from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.api.strict_json import MAX_DEPTH, InvalidJSON, decode

texts = st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))
numbers = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)


@given(values, st.booleans())
def test_what_json_writes_is_read_back(value: Any, ascii_only: bool) -> None:
    assert decode(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


@given(st.binary(max_size=200) | st.text(alphabet='[]{}",:\\u0deNaI1e9-. \x00', max_size=200).map(str.encode))
def test_any_bytes_are_a_value_or_a_clear_refusal(body: bytes) -> None:
    try:
        value = decode(body)
    except InvalidJSON as error:
        reason = str(error)
    else:
        reason = ""
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
    assert reason == "" or reason.startswith("The body ")


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 1_000, 100_000, 1_000_000])
def test_deep_nesting_is_refused_by_its_depth(opening: bytes, depth: int) -> None:
    with pytest.raises(InvalidJSON, match="deeper than 32"):
        decode(opening * depth)


def test_32_levels_are_allowed() -> None:
    assert decode(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)


def test_brackets_that_close_do_not_add_up() -> None:
    assert len(decode(b"[" + b",".join([b"[{}]"] * 1_000) + b"]")) == 1_000


@pytest.mark.parametrize("body", [b'"' + rb"\"" * 500_000, b'["' + rb"\\" * 500_000 + b"[" * 500_000, b'"[' * 500_000])
def test_quotes_that_never_close_take_linear_time(body: bytes) -> None:
    with pytest.raises(InvalidJSON):
        decode(body)


@pytest.mark.parametrize("number", ["1e308", "-1e308", "1e-999", "123456789012345678", "-0"])
def test_numbers_that_fit_are_read(number: str) -> None:
    assert math.isfinite(decode(number.encode()))


@pytest.mark.parametrize("number", ["1e309", "-1e309", "1" * 21, "-" + "1" * 20, "01", "+1", ".5", "1.", "0x1", "1_0"])
def test_numbers_that_do_not_fit_are_refused(number: str) -> None:
    with pytest.raises(InvalidJSON):
        decode(number.encode())


def test_a_surrogate_pair_is_one_character() -> None:
    assert decode(rb'"\ud83d\ude00"') == "\U0001f600"
