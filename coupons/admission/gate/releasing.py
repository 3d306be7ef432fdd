"""Update the gates after results. Idempotent, so several processes may report the same result."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable

from redis.exceptions import RedisError

from ..base import FinishedRequest
from .redis_keys import redis
from .store import GateStore

logger = logging.getLogger(__name__)


def release(finished: Iterable[FinishedRequest]) -> None:
    """Confirm or release the gates' reservations by the results of their requests; idempotent.

    Best effort: a reservation whose update is lost stays pending, and the reconciler finds it by its age.
    """
    by_coupon: dict[int, list[FinishedRequest]] = defaultdict(list)
    for request in finished:
        by_coupon[request.coupon_id].append(request)
    try:
        for gate in _existing_gates(by_coupon):
            gate.finish(by_coupon[gate.coupon_id])
    except RedisError as error:
        logger.warning("the gate was not updated with results of requests: %s", error)


def _existing_gates(coupon_ids: Iterable[int]) -> list[GateStore]:
    """Return the gates that exist. Most coupons have none, and EXISTS is cheaper than running finish.lua."""
    gates = [GateStore(coupon_id) for coupon_id in coupon_ids]
    if not gates:
        return []
    with redis().pipeline(transaction=False) as pipeline:
        for gate in gates:
            pipeline.exists(gate.keys.holders)
        return [gate for gate, exists in zip(gates, pipeline.execute(), strict=True) if exists]
