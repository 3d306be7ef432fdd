"""The ranking while Redis is emptied, away or refuses writes: no event is lost and none counts twice."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from django_redis import get_redis_connection
from pytest_django import Settings
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from kafka_bridge.models import DeadLetter, ProcessedEvent
from orders.models import Product
from orders.ranking import store as ranking_view
from orders.ranking.sales import Sale
from tests.support.orders import cancelled, completed, make_paid_order
from tests.support.ranking import (
    consume,
    die_between_redis_and_postgresql,
    in_postgresql,
    in_redis,
    just_now,
    redis_away,
)

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("redis_flushed")]


def test_the_first_events_ever_find_their_ranking_made(tea: Product) -> None:
    consume(completed(make_paid_order({tea: 1})))
    assert in_redis() == [("Tea", 1)]


def test_a_flush_in_the_middle_is_made_good_with_nobodys_help(tea: Product, rice: Product) -> None:
    for number in range(12):
        order = make_paid_order({tea: 2, rice: 1}, cancelled_at=just_now() if number % 3 == 0 else None)
        consume(completed(order))
        if number in (3, 6):
            get_redis_connection("default").flushdb()
        if order.cancelled_at:
            consume(cancelled(order))
    assert in_redis() == in_postgresql() == [("Tea", 16), ("Rice", 8)]


def test_a_flush_between_redis_and_postgresql_counts_once(tea: Product) -> None:
    batch = [completed(make_paid_order({tea: 1})) for _ in range(3)]
    die_between_redis_and_postgresql(batch)
    get_redis_connection("default").flushdb()
    consume(*batch)
    assert in_redis() == [("Tea", 3)]


@pytest.mark.usefixtures("redis_alone", "loaded")
def test_scripts_that_redis_forgot_are_no_trouble(tea: Product) -> None:
    consume(completed(make_paid_order({tea: 1})))
    get_redis_connection("default").script_flush()
    consume(completed(make_paid_order({tea: 1})))
    assert in_redis() == [("Tea", 2)]


def test_while_redis_is_away_nothing_is_counted_and_nothing_dropped(tea: Product, settings: Settings) -> None:
    order = completed(make_paid_order({tea: 1}))
    with redis_away(settings), pytest.raises(RedisConnectionError):
        consume(order)
    assert not ProcessedEvent.objects.exists()
    assert not DeadLetter.objects.exists()
    consume(order)
    assert in_redis() == [("Tea", 1)]


@pytest.mark.parametrize(
    "told",
    [
        "OOM command not allowed when used memory > 'maxmemory'.",
        "MISCONF Redis is configured to save RDB snapshots, but it is currently unable to persist to disk.",
        "BUSY Redis is busy running a script.",
        "ERR Error running script (call to f_1): @user_script:12: @user_script: 12: -READONLY You can't write.",
        "ERR Error running script (call to f_1): @user_script:12: @user_script: 12: -OOM command not allowed.",
    ],
)
def test_while_redis_takes_no_writes_nothing_is_counted_and_nothing_dropped(
    told: str, tea: Product, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    settings.CONSUMER_BACKOFF_SECONDS = 0
    order = completed(make_paid_order({tea: 1}))

    def refuse(sales: Sequence[Sale]) -> int:
        return int(get_redis_connection("default").eval("return redis.error_reply(ARGV[1])", 0, told))

    with monkeypatch.context() as patch:
        patch.setattr(ranking_view, "count", refuse)
        with pytest.raises(RedisError):
            consume(order)
    assert not ProcessedEvent.objects.exists()
    assert not DeadLetter.objects.exists()
    consume(order)
    assert in_redis() == [("Tea", 1)]
