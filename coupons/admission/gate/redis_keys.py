"""The gate of a coupon in Redis: three keys of one hash slot, and scripts.

takers   a hash: by user id the id of the request by which the user has or is to have a piece, a colon, and its place in
         line (0: unknown), or a dash for a piece that the gate did not give; and ``sequence``, the last place given
         out. What is taken is its length without that field, so there is no counter that could go wrong. Without that
         field the gate is not loaded.
open     a sorted set: user ids whose requests are undecided, by the time of their reservation (Redis's, in ms).
revoked  a set: users whose piece went back to the stock. They get no other.

``open`` and ``revoked`` hold a dash besides, so that they are there even while they are empty: without one of the three
the gate is not loaded. They expire together once nobody was let in for a day; whoever asks then has it loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from common.redis_client import redis_connection

LIFETIME_SECONDS = 24 * 3600
# Of what is told to a gate while it is built, and of what a builder who was killed has left.
LEFTOVER_SECONDS = 60
SENTINEL = b"-"
# What check.lua returns beside 0, for none.
COMPLETE, PARTIAL = 1, 2
# What Lua can unpack into the arguments of one command is limited; and nobody else is served during a call.
MOST_PER_CALL = 500


class Keys(NamedTuple):
    takers: str
    open: str
    revoked: str


def keys(coupon_id: int) -> Keys:
    """The keys of a coupon's gate."""
    return _keys(coupon_id, "")


def staging_keys(coupon_id: int, token: str) -> Keys:
    """Where the gate is built before it is put in its place."""
    return _keys(coupon_id, f":loading:{token}")


def lock_key(coupon_id: int) -> str:
    """The lock of whoever loads the gate."""
    return f"gate:{{{coupon_id}}}:lock"


def redis() -> Any:
    return redis_connection()


def run(name: str, keys: Sequence[str], args: Sequence[object]) -> Any:
    """Run a Lua script of this folder; a server that lost it gets it again."""
    return _script(name)(keys=keys, args=args, client=redis())


@cache
def _script(name: str) -> Any:
    return redis().register_script(Path(__file__).with_name(name).read_text())


def _keys(coupon_id: int, suffix: str) -> Keys:
    base = f"gate:{{{coupon_id}}}"
    return Keys(f"{base}{suffix}", f"{base}:open{suffix}", f"{base}:revoked{suffix}")
