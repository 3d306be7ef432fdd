"""The bound of PostgreSQL's bigint, the type of all ids, units and amounts."""

from __future__ import annotations

MAX_BIGINT = 2**63 - 1
