"""Effect of a paid order: add its products to the ranking; a cancellation subtracts them.

Events of the two topics arrive in any order, which does not matter to sums.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from django.conf import settings

from common.processes.lifecycle import StopFlag
from kafka_bridge.registry import ConsumerGroup

from ..ranking import store
from ..ranking.rebuild import ranking_rebuild
from ..ranking.sales import EVENT_TYPES, Sale, read_sale
from ..ranking.store import BeingRebuilt, NotLoaded, RebuildLost

logger = logging.getLogger(__name__)

# One batch is one script call, during which Redis serves no other client.
_LARGEST_BATCH = 1000
# How long a batch waits for a running rebuild before its partition is retried later.
_PATIENCE_SECONDS = 10.0
_POLL_SECONDS = 0.1


def group() -> ConsumerGroup:
    """Build the consumer group of this effect."""
    return ConsumerGroup(
        name="ranking",
        event_types=EVENT_TYPES,
        decode=read_sale,
        call=count_sales,
        describe_call=describe_sale,
        inbox=True,
        largest_batch=_LARGEST_BATCH,
        log_only=settings.ORDER_EFFECT_POLICIES["ranking"] == "log_only",
    )


def count_sales(sales: Sequence[Sale], stop: StopFlag) -> list[Exception | None]:
    """Count ``sales`` in the ranking; if Redis has no complete ranking, rebuild it first.

    Raises BeingRebuilt, RebuildLost and the errors of redis; nothing is counted then.
    """
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            _count_or_rebuild(sales, stop)
            return [None] * len(sales)
        except (BeingRebuilt, RebuildLost):
            # Wait here: a group with the policy log_only would otherwise skip the events that a rebuild delays.
            if time.monotonic() >= deadline or stop.wait(_POLL_SECONDS):
                raise


def describe_sale(sale: Sale) -> str:
    """Say in one line what ``count_sales`` counts."""
    return f"{sum(sale.quantities.values())} units on {sale.day} in the ranking"


def _count_or_rebuild(sales: Sequence[Sale], stop: StopFlag) -> None:
    while True:
        try:
            store.count(sales)
            return
        except NotLoaded:
            logger.warning("Redis has no complete ranking: rebuilding it from PostgreSQL")
        ranking_rebuild(stop=stop)
