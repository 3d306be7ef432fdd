"""The traceparent header of W3C Trace Context: parsing and creation."""

from __future__ import annotations

import os
import re
from uuid import UUID

_TRACEPARENT = re.compile(
    r"(?P<version>[0-9a-f]{2})-(?P<trace_id>[0-9a-f]{32})-(?P<parent_id>[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})"
    r"(?P<later_fields>-.*)?",
    re.DOTALL,
)

# A valid one of version 00: the usual case, in one match.
_PLAIN = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def new_traceparent() -> str:
    """Create a new, sampled traceparent (version 00)."""
    ids = os.urandom(24).hex()
    return f"00-{ids[:32]}-{ids[32:]}-01"


def read_traceparent(text: str) -> str:
    """Return the trace context in ``text`` as a version 00 traceparent; empty if it is invalid, and a new trace begins.

    W3C Trace Context, 3.2 and 4: upper case, all-zero ids and version ff are invalid. Of a later version the fields
    that version 00 knows are kept, and of its flags only ``sampled``.
    """
    if _PLAIN.fullmatch(text):
        return text
    found = _TRACEPARENT.fullmatch(text)
    if (
        found is None
        or found["version"] == "ff"
        or not found["trace_id"].strip("0")
        or not found["parent_id"].strip("0")
    ):
        return ""
    if found["version"] == "00":
        return ""
    return f"00-{found['trace_id']}-{found['parent_id']}-{int(found['flags'], 16) & 1:02x}"


def traceparent_in(trace_id: UUID) -> str:
    """Create a sampled traceparent of a new span in the trace ``trace_id``, which must not be all zeros."""
    return f"00-{trace_id.hex}-{os.urandom(8).hex()}-01"
