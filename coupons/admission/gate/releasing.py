"""What the gate is told once requests have ended: whoever told it, however often."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence

from redis.exceptions import RedisError

from ... import metrics
from ..base import FinishedRequest
from .redis_keys import LEFTOVER_SECONDS, MOST_PER_CALL, keys, redis, run

logger = logging.getLogger(__name__)


def release(ended: Iterable[FinishedRequest]) -> None:
    """Make reservations final, or give them back, by how their requests ended; the same again changes nothing.

    Best effort: what does not get through remains open and is found by its age.
    """
    by_coupon: dict[int, list[FinishedRequest]] = defaultdict(list)
    for one in ended:
        by_coupon[one.coupon_id].append(one)
    try:
        for coupon_id in _with_a_gate(list(by_coupon)):
            _release(coupon_id, by_coupon[coupon_id])
    except RedisError as error:
        logger.warning("the gate was not told how requests ended: %s", error)


def revoke(coupon_id: int, user_ids: Sequence[int]) -> None:
    """Bar users whose pieces went back to the stock, and count those no more. Best effort."""
    try:
        run("revoke.lua", keys(coupon_id), [LEFTOVER_SECONDS, *user_ids])
    except RedisError as error:
        logger.warning("the gate was not told of revoked coupons: %s", error)


def _with_a_gate(coupon_ids: Sequence[int]) -> list[int]:
    """Most coupons have none: asking is cheaper than telling."""
    if not coupon_ids:
        return []
    with redis().pipeline(transaction=False) as pipeline:
        for coupon_id in coupon_ids:
            pipeline.exists(keys(coupon_id).takers)
        return [coupon_id for coupon_id, there in zip(coupon_ids, pipeline.execute(), strict=True) if there]


def _release(coupon_id: int, ended: Sequence[FinishedRequest]) -> None:
    for start in range(0, len(ended), MOST_PER_CALL):
        args: list[object] = []
        for one in ended[start : start + MOST_PER_CALL]:
            args += (one.user_id, str(one.request_id), one.reason or "")
        released, dropped = run("finish.lua", keys(coupon_id), args)
        metrics.GATE_RELEASED.inc(released)
        if dropped:
            metrics.GATE_DROPPED.inc()
            logger.error("the gate of coupon %s let in more than there is: it is loaded anew", coupon_id)
