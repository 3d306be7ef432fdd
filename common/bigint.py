"""PostgreSQL's bigint, the type of all ids, units and amounts."""

from __future__ import annotations

MAX_BIGINT = 2**63 - 1


def parse_id(digits: str | bytes) -> int | None:
    """Return the id that at most 19 decimal ``digits`` stand for; None if it is 0 or above ``MAX_BIGINT``."""
    number = int(digits)
    return number if 0 < number <= MAX_BIGINT else None
