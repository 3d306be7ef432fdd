"""Update the gate after results and revocations. Idempotent, so several processes may report the same result."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence

from redis.exceptions import RedisError

from ... import metrics
from ..base import FinishedRequest
from .redis_keys import LEFTOVER_SECONDS, MOST_PER_CALL, keys, redis, run

logger = logging.getLogger(__name__)


def release(finished: Iterable[FinishedRequest]) -> None:
    """Confirm or release the gate's reservations by the results of their requests; idempotent.

    Best effort: a reservation whose update is lost stays pending, and the reconciler finds it by its age.
    """
    by_coupon: dict[int, list[FinishedRequest]] = defaultdict(list)
    for request in finished:
        by_coupon[request.coupon_id].append(request)
    try:
        for coupon_id in _with_gate(list(by_coupon)):
            _release(coupon_id, by_coupon[coupon_id])
    except RedisError as error:
        logger.warning("the gate was not updated with results of requests: %s", error)


def revoke(coupon_id: int, user_ids: Sequence[int]) -> None:
    """Remove users whose units returned to the stock and do not admit them again. Best effort."""
    try:
        run("revoke.lua", keys(coupon_id), [LEFTOVER_SECONDS, *user_ids])
    except RedisError as error:
        logger.warning("the gate was not updated with revoked coupons: %s", error)


def _with_gate(coupon_ids: Sequence[int]) -> list[int]:
    """Return the coupons that have a gate. Most have none, and EXISTS is cheaper than running finish.lua."""
    if not coupon_ids:
        return []
    with redis().pipeline(transaction=False) as pipeline:
        for coupon_id in coupon_ids:
            pipeline.exists(keys(coupon_id).holders)
        return [coupon_id for coupon_id, exists in zip(coupon_ids, pipeline.execute(), strict=True) if exists]


def _release(coupon_id: int, finished: Sequence[FinishedRequest]) -> None:
    for start in range(0, len(finished), MOST_PER_CALL):
        args: list[object] = []
        for request in finished[start : start + MOST_PER_CALL]:
            args += (request.user_id, str(request.request_id), request.reason or "")
        released, dropped = run("finish.lua", keys(coupon_id), args)
        metrics.GATE_RELEASED.inc(released)
        if dropped:
            metrics.GATE_DROPPED.inc()
            logger.error(
                "the gate of coupon %s admitted more than the stock: it is dropped and the next request loads it",
                coupon_id,
            )
