"""The gate of a coupon in Redis: three keys in one hash slot, and scripts.

holders  a hash, key ``gate:{<coupon id>}``. By user id, the request that holds a unit for the user: request id, a
         colon, and its sequence (0: unknown); or a dash for a unit that the gate did not reserve. The field
         ``sequence`` is the last sequence assigned. The number of units held is the number of fields without
         ``sequence``, so there is no counter that could be wrong.
pending  a sorted set, key suffix ``:open``: user ids whose requests are undecided, by the time of their reservation
         (Redis's clock, in ms).
revoked  a set, key suffix ``:revoked``: users whose unit returned to the stock. They cannot get the coupon
         again.

``pending`` and ``revoked`` also hold a dash as sentinel, so that the keys exist even without members. If one of the
three keys, the field ``sequence`` or a sentinel is missing, the gate is not loaded. The keys expire together when no
request was admitted for a day; the next request loads the gate again.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from common.redis_scripts import run_script

LIFETIME_SECONDS = 24 * 3600
# Lifetime of revocations kept for a gate that is being built, and of the staging keys of a loader that was killed.
LEFTOVER_SECONDS = 60
SENTINEL = b"-"
# What check.lua returns, besides 0 for no gate.
COMPLETE, PARTIAL = 1, 2
# Lua can unpack only a limited number of arguments into one command, and a script blocks Redis while it runs.
MOST_PER_CALL = 500


class Keys(NamedTuple):
    holders: str
    pending: str
    revoked: str


def run(name: str, keys: Sequence[str], args: Sequence[object]) -> Any:
    """Run a Lua script of this folder. Raises RedisError."""
    return run_script(_source(name), keys, args)


@cache
def _source(name: str) -> str:
    return Path(__file__).with_name(name).read_text()
