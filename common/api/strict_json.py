"""A strict JSON decoder (RFC 8259) that refuses values which PostgreSQL could not store."""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

MAX_DEPTH = 32
# A 64-bit number has at most 19 digits and a sign; longer ones are refused before int() parses them.
_MAX_INT_CHARACTERS = 20

# Linear time: the possessive repeat and the optional closing quote leave nothing to backtrack over.
_STRUCTURE = re.compile(r'"(?:[^"\\]|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)


class InvalidJSON(ValueError):
    """The body is not JSON, or not JSON that the API accepts; the message is for the client."""


def decode(body: bytes) -> Any:
    """Decode a JSON document in UTF-8.

    Refused with InvalidJSON: other encodings and the byte order mark, duplicate names, NaN and Infinity and
    numbers that overflow to them, integers past 20 characters, nesting past 32, NUL and lone surrogates in
    any text, and anything after the value. Never raises RecursionError.
    """
    try:
        text = body.decode("utf-8", "strict")
    except UnicodeDecodeError as error:
        raise InvalidJSON(f"The body is not UTF-8 (byte {error.start}).") from None
    if text.startswith("\ufeff"):
        raise InvalidJSON("The body starts with a byte order mark.")
    _refuse_depth(text)
    try:
        value = _decoder.decode(text)
    except json.JSONDecodeError as error:
        raise InvalidJSON(f"The body is not JSON: {error.msg} (character {error.pos}).") from None
    # The decoders of UTF-8 and JSON refuse raw NULs and surrogates: only an escape can produce them.
    if "\\u" in text:
        _refuse_unstorable(value)
    return value


def _refuse_depth(text: str) -> None:
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    depth = 0
    for match in _STRUCTURE.finditer(text):
        character = match.group()[0]
        if character in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise InvalidJSON(f"The body is nested deeper than {MAX_DEPTH}.")
        elif character in "]}":
            depth -= 1


def _refuse_unstorable(value: Any) -> None:
    if isinstance(value, str):
        if "\x00" in value:
            raise InvalidJSON("The body holds a NUL character.")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InvalidJSON("The body holds a lone surrogate.") from None
    elif isinstance(value, list):
        for item in value:
            _refuse_unstorable(item)
    elif isinstance(value, dict):
        for name, item in value.items():
            _refuse_unstorable(name)
            _refuse_unstorable(item)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise InvalidJSON("The body has an object with a duplicate name.")
    return value


def _float(raw: str) -> float:
    value = float(raw)
    if not math.isfinite(value):
        raise InvalidJSON("The body holds a number too large for a double.")
    return value


def _int(raw: str) -> int:
    if len(raw) > _MAX_INT_CHARACTERS:
        raise InvalidJSON("The body holds an integer too large for 64 bits.")
    return int(raw)


def _constant(name: str) -> NoReturn:
    raise InvalidJSON(f"The body holds {name}, which is not JSON.")


_decoder = json.JSONDecoder(
    object_pairs_hook=_object, parse_float=_float, parse_int=_int, parse_constant=_constant, strict=True
)
