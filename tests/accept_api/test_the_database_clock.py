"""``requestedAt`` is the database's time, never ahead of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.db.backends.signals import connection_created

from common.postgres.clock import database_time
from coupons.coupon_cache import coupon_cache
from coupons.models import Coupon

pytestmark = pytest.mark.django_db(transaction=True)

CONNECT_SECONDS = 0.7


@pytest.fixture
def slow_connections() -> Iterator[None]:
    """A connection takes its time until it can be used, as through a busy pooler."""

    def delay(**_signal: Any) -> None:
        time.sleep(CONNECT_SECONDS)

    connection_created.connect(delay)
    yield
    connection_created.disconnect(delay)


@pytest.mark.parametrize("is_connected", [False, True])
def test_the_time_is_not_ahead_by_what_the_connection_took(
    is_connected: bool, make_coupon: Callable[..., Coupon], slow_connections: None
) -> None:
    coupon = make_coupon()
    if not is_connected:
        connection.close()
    coupon_cache.clear()
    assert coupon_cache.get(coupon.id) is not None
    ours, theirs = coupon_cache.clock.now(), database_time()
    assert ours <= theirs
    assert theirs - ours < timedelta(seconds=CONNECT_SECONDS)
