"""Odd values and random mutations of valid data, reproducible from the given ``Random``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from random import Random
from typing import Any

_NUMBER = re.compile(rb"\d+")
# More digits than Python converts to or from int (4,300), so it must be spliced in as bytes.
_LONG_NUMBER = b"9" * 4301

ODD_TEXTS = (
    "",
    " ",
    "\0",
    "\ud800",
    "\x7f\x1b[31m",
    "\u202eTYPE",
    "\u3000",
    "\u0663",
    "e\u0301",
    "쿠폰",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "A" * 65,
    "x" * 5000,
    "null",
    "NaN",
    "1e400",
    "0" * 4301,
    "-1",
    "' OR 1=1 --",
    "=HYPERLINK(1)",
    "../../etc/passwd",
    "%00",
    "{0.__class__}%s",
    "a\r\nX-Injected: 1",
    "0001-01-01T00:00:00+09:00",
    "9999-12-31T23:59:59-05:00",
    "2026-02-30T00:00:00Z",
    "2026-01-01T00:00:00",
    "00000000-0000-0000-0000-000000000000",
)
ODD_NUMBERS = (
    0,
    -1,
    1,
    2**31 - 1,
    2**31,
    2**53 + 1,
    2**63 - 1,
    2**63,
    -(2**63),
    10**30,
    10**400,
    1.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
)
ODD_BYTES = (b"", b"\0", b"\xff", b"\xff\xfe\x00", b"\xed\xa0\x80", b"\xc0\x80", b"\x1f\x8b\x08\x00", b"[" * 40_000)


def odd_value(random: Random) -> Any:
    """Return an unusual JSON value."""
    kind = random.randrange(6)
    if kind < 2:
        return random.choice(ODD_TEXTS)
    if kind < 4:
        return random.choice(ODD_NUMBERS)
    return random.choice(
        [None, True, False, [], {}, [[[]]], {"a": {"b": 1}}, ["x"] * 200, nested(random.choice([33, 900]))]
    )


def nested(depth: int) -> Any:
    """Return ``depth`` nested lists."""
    value: Any = []
    for _ in range(depth - 1):
        value = [value]
    return value


def encode(value: Any, random: Random) -> bytes:
    """Encode as JSON, randomly escaped or not; NaN and lone surrogates, which JSON lacks, are written as by Python."""
    text = json.dumps(value, ensure_ascii=random.random() < 0.5)
    return text.encode("utf-8", "surrogatepass")


def mutated_body(body: Mapping[str, Any], random: Random) -> bytes:
    """Return ``body`` as JSON with one to three mutated fields, and sometimes mutated bytes."""
    changed = dict(body)
    for _ in range(random.randint(1, 3)):
        name = random.choice([*changed, "extra"])
        match random.randrange(5):
            case 0:
                changed.pop(name, None)
            case 1:
                changed[random.choice(ODD_TEXTS)] = odd_value(random)
            case 2 if isinstance(changed.get(name), list) and changed[name]:
                changed[name] = [*changed[name], odd_value(random)] * random.choice([1, 1, 60])
            case 2 if isinstance(changed.get(name), str):
                changed[name] = str(changed[name]) + random.choice(ODD_TEXTS)
            case _:
                changed[name] = odd_value(random)
    data = encode(changed, random)
    if random.random() < 0.15 and len(data) > 2:
        # Duplicate names: every field twice.
        data = data[:-1] + b"," + data[1:]
    return mutated_bytes(data, random) if random.random() < 0.25 else data


def mutated_bytes(data: bytes, random: Random) -> bytes:
    """Return ``data`` with one to four byte mutations."""
    changed = bytearray(data)
    for _ in range(random.randint(1, 4)):
        start = random.randint(0, len(changed))
        end = min(len(changed), start + random.randint(0, 8))
        match random.randrange(6):
            case 0:
                changed[start:end] = random.randbytes(end - start)
            case 1:
                changed[start:start] = random.choice(ODD_BYTES)
            case 2:
                del changed[start:end]
            case 3:
                del changed[start:]
            case 4:
                changed[start:start] = changed[start:end] * random.randint(1, 50)
            case _:
                changed[:] = _NUMBER.sub(_LONG_NUMBER, changed, count=1)
    return bytes(changed)
