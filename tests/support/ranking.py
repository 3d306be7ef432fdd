"""The ranking as a test fills it and looks at it: in Redis only, or in PostgreSQL only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from unittest import mock

from pytest_django import Settings

from common.processes.lifecycle import StopFlag
from kafka_bridge.consuming.batch import BatchHandler
from kafka_bridge.models import ProcessedEvent
from kafka_bridge.registry import ReceivedMessage
from orders.effects import ranking
from orders.models import Product
from orders.ranking import store as ranking_view
from orders.ranking.days import last_days
from orders.ranking.selectors import best_sellers

Sold = list[tuple[str, int]]


def consume(*messages: ReceivedMessage) -> None:
    BatchHandler(ranking.group()).handle(messages, StopFlag())


def in_redis(days: int = 30) -> Sold:
    """The ranking as Redis has it, and only Redis."""
    found = ranking_view.best(last_days(days), 200)
    assert found is not None
    names = dict(Product.objects.values_list("id", "name"))
    return [(names[product_id], sold) for product_id, sold in found]


def in_postgresql(days: int = 30) -> Sold:
    """The ranking as it is answered while Redis has none."""
    with mock.patch.object(ranking_view, "best", return_value=None):
        return [(seller.name, seller.quantity) for seller in best_sellers(days=days, limit=200)]


def just_now() -> datetime:
    return datetime.now(UTC)


def die_between_redis_and_postgresql(batch: Sequence[ReceivedMessage]) -> None:
    """What a process has done that dies after the call and before the commit."""
    group = ranking.group()
    assert group.call is not None
    assert group.call([group.decode(item) for item in batch], StopFlag()) == [None] * len(batch)
    assert not ProcessedEvent.objects.exists()


@contextmanager
def redis_away(settings: Settings) -> Iterator[None]:
    """Within, Redis is at a port where no process listens."""
    there = settings.CACHES
    settings.CACHES = there | {"default": there["default"] | {"LOCATION": "redis://127.0.0.1:1/0"}}
    yield
    settings.CACHES = there
