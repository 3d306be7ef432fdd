"""Update the gates after results. Idempotent, so several processes may report the same result."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable

from redis.exceptions import RedisError

from ..base import FinishedRequest
from .store import existing

logger = logging.getLogger(__name__)


def release(finished: Iterable[FinishedRequest]) -> None:
    """Confirm or release the gates' reservations by the results of their requests; idempotent.

    Best effort: a reservation whose update is lost stays pending, and the reconciler finds it by its age.
    """
    by_coupon: dict[int, list[FinishedRequest]] = defaultdict(list)
    for request in finished:
        by_coupon[request.coupon_id].append(request)
    try:
        # Most coupons have no gate, and EXISTS is cheaper than running finish.lua.
        for gate in existing(by_coupon):
            gate.finish(by_coupon[gate.coupon_id])
    except RedisError as error:
        logger.warning("the gate was not updated with results of requests: %s", error)
