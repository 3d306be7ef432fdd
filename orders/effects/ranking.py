"""Effect of a paid order: its products rise in the ranking; a cancelled one takes them back.

Events of the two topics come in any order. They are sums, so that does not matter.
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

# One call of Redis, which does nothing else meanwhile.
_LARGEST_BATCH = 1000
# How long a batch waits for a rebuild to end before its partition is paused.
_PATIENCE_SECONDS = 10.0
_LOOK_SECONDS = 0.1


def group() -> ConsumerGroup:
    """The consumer group of this effect."""
    return ConsumerGroup(
        name="ranking",
        event_types=EVENT_TYPES,
        decode=read_sale,
        call=count_sales,
        inbox=True,
        largest_batch=_LARGEST_BATCH,
        log_only=settings.ORDER_EFFECT_POLICIES["ranking"] == "log_only",
    )


def count_sales(sales: Sequence[Sale], stop: StopFlag) -> list[Exception | None]:
    """Bring ``sales`` into the ranking; one that Redis lost is rebuilt first.

    Raises BeingRebuilt, RebuildLost and the errors of redis, with nothing counted.
    """
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            _count_or_rebuild(sales, stop)
            return [None] * len(sales)
        except (BeingRebuilt, RebuildLost):
            # Waiting here keeps a group that only logs its failures from passing over what a rebuild held up.
            if time.monotonic() >= deadline or stop.wait(_LOOK_SECONDS):
                raise


def _count_or_rebuild(sales: Sequence[Sale], stop: StopFlag) -> None:
    while True:
        try:
            store.count(sales)
            return
        except NotLoaded:
            logger.warning("Redis has no complete ranking; it is rebuilt from PostgreSQL")
        ranking_rebuild(stop=stop)
