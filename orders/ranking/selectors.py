"""Read the ranking from Redis, or from PostgreSQL while Redis has no complete ranking."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import date, timedelta

from django.db.models import F, QuerySet, Sum
from redis.exceptions import RedisError

from common.processes.log_limit import LogLimit

from ..models import Order, OrderLine, Product
from ..schemas import BestSeller
from . import store
from .days import last_days, start_of

logger = logging.getLogger(__name__)

_limit = LogLimit()


def paid_on(days: Sequence[date]) -> QuerySet[Order]:
    """Select the orders paid on ``days``, which must be consecutive; includes orders cancelled later."""
    return Order.objects.filter(paid_at__gte=start_of(days[0]), paid_at__lt=start_of(days[-1] + timedelta(days=1)))


def best_sellers(*, days: int, limit: int) -> list[BestSeller]:
    """List the ``limit`` products sold most in the last ``days`` days, today included; ties are sorted by id."""
    window = last_days(days)
    found = _from_redis(window, limit)
    if found is None:
        found = _from_postgresql(window, limit)
    names = dict(Product.objects.filter(id__in=[product_id for product_id, _ in found]).values_list("id", "name"))
    # An event from another system may name a product that is not in our table.
    return [BestSeller(product_id, names.get(product_id, f"#{product_id}"), sold) for product_id, sold in found]


def _from_redis(days: Sequence[date], limit: int) -> list[tuple[int, int]] | None:
    try:
        return store.best(days, limit)
    except RedisError as error:
        if number := _limit.due("unavailable"):
            logger.warning(
                "ranking read from PostgreSQL because Redis failed, %d times since the last line: %s", number, error
            )
        return None


def _from_postgresql(days: Sequence[date], limit: int) -> list[tuple[int, int]]:
    sold = (
        OrderLine.objects.filter(order__in=paid_on(days).filter(status=Order.Status.PAID))
        .values("product_id")
        .annotate(sold=Sum("quantity"))
        .order_by(F("sold").desc(), "product_id")
    )
    return list(sold.values_list("product_id", "sold")[:limit])
