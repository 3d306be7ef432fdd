"""``requestedAt`` is the database's time, never ahead of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.db.backends.signals import connection_created

from coupons.catalogue import catalogue
from coupons.models import Coupon
from kafka_bridge.clock import database_time

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
    catalogue.clear()
    assert catalogue.get(coupon.id) is not None
    ours, theirs = catalogue.clock.now(), database_time()
    assert ours <= theirs
    assert theirs - ours < timedelta(seconds=CONNECT_SECONDS)
