"""The state of gates for operators: whether each is loaded, its entries and its memory."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal, NamedTuple

from redis.exceptions import ResponseError

from common.redis_client import redis_connection

from .store import GateStore

GateState = Literal["loaded", "partial", "missing"]


class GateOverview(NamedTuple):
    """A gate. ``held``: units held; ``pending``: of undecided requests; ``revoked``: users who are not admitted again.

    ``memory_bytes`` is sampled. A number is None if the key is missing, of another kind, or may not be read.
    """

    coupon_id: int
    state: GateState
    held: int | None
    pending: int | None
    revoked: int | None
    memory_bytes: int | None


def gate_overviews(coupon_ids: Collection[int]) -> list[GateOverview]:
    """Read the gates of ``coupon_ids``: one call for their sizes, and one for the state of each. Raises RedisError."""
    return [_overview(GateStore(coupon_id), sizes) for coupon_id, sizes in _sizes(coupon_ids).items()]


def _sizes(coupon_ids: Collection[int]) -> dict[int, list[Any]]:
    """Return what Redis replies, errors included: lengths of the three keys, then their memory."""
    found: dict[int, list[Any]] = {}
    if not coupon_ids:
        return found
    with redis_connection().pipeline(transaction=False) as pipeline:
        for coupon_id in coupon_ids:
            keys = GateStore(coupon_id).keys
            pipeline.hlen(keys.holders)
            pipeline.zcard(keys.pending)
            pipeline.scard(keys.revoked)
            for key in keys:
                pipeline.memory_usage(key)
        replies = pipeline.execute(raise_on_error=False)
    for reply in replies:
        # A key of another kind, or a command that the user may not call: that number is unknown, the others are not.
        if isinstance(reply, Exception) and not isinstance(reply, ResponseError):
            raise reply
    for number, coupon_id in enumerate(coupon_ids):
        found[coupon_id] = replies[number * 6 : number * 6 + 6]
    return found


def _overview(gate: GateStore, sizes: list[Any]) -> GateOverview:
    held, pending, revoked, *memory = sizes
    state: GateState = "loaded" if gate.is_loaded() else "missing" if gate.is_complete(drop=False) else "partial"
    used = [size for size in memory if isinstance(size, int)]
    return GateOverview(
        gate.coupon_id,
        state,
        # Without the field that holds the sequence, and without the sentinels.
        held=_less_one(held),
        pending=_less_one(pending),
        revoked=_less_one(revoked),
        memory_bytes=sum(used) if used else None,
    )


def _less_one(size: object) -> int | None:
    return size - 1 if isinstance(size, int) and size else None
