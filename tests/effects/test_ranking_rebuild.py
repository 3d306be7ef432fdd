"""The ranking is rebuilt while events come: none is lost and none counts twice."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import date, timedelta
from typing import Any

import pytest
from django_redis import get_redis_connection
from pytest_django import Settings

from common.processes.lifecycle import StopFlag
from common.processes.outages import ServiceUnavailable
from devstack import wait_until
from kafka_bridge.consuming.batch import BatchHandler
from kafka_bridge.registry import ReceivedMessage
from orders.effects import ranking
from orders.models import Order, Product
from orders.ranking import store as ranking_view
from orders.ranking.days import day_of, last_days
from orders.ranking.rebuild import ranking_rebuild as rebuild
from orders.ranking.rebuild import ranking_rebuild_from
from orders.ranking.sales import Sale
from orders.ranking.selectors import best_sellers
from tests.support.orders import cancelled, completed, make_paid_order
from tests.support.ranking import (
    consume,
    in_postgresql,
    in_redis,
    just_now,
)
from tests.support.threads import in_another_session

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("redis_flushed")]


def test_a_rebuild_brings_what_postgresql_has_and_nothing_else(tea: Product, rice: Product) -> None:
    consume(completed(make_paid_order({tea: 9})))
    Order.objects.all().delete()
    days = [just_now() - timedelta(days=back) for back in (0, 29, 30, 40)]
    for paid_at in days:
        make_paid_order({rice: 1}, paid_at=paid_at)
    make_paid_order({tea: 1}, cancelled_at=just_now())
    rebuilt = rebuild(stop=StopFlag())
    assert rebuilt.events == 5
    assert (rebuilt.first_day, rebuilt.last_day) == (day_of(days[2]), day_of(days[0]))
    assert in_redis(30) == [("Rice", 2)]
    assert in_redis(1) == [("Rice", 1)]


def test_nothing_that_a_rebuild_brought_is_counted_again(tea: Product) -> None:
    order = make_paid_order({tea: 2}, cancelled_at=just_now())
    other = make_paid_order({tea: 1})
    rebuild(stop=StopFlag())
    consume(completed(order), cancelled(order), completed(other))
    assert in_redis() == [("Tea", 1)]


def test_two_rebuilds_at_once_are_refused(tea: Product) -> None:
    with ranking_view.rebuilding(), pytest.raises(ranking_view.BeingRebuilt, match="run it again"):
        rebuild(stop=StopFlag())
    rebuild(stop=StopFlag())


@pytest.mark.usefixtures("loaded")
def test_while_a_rebuild_is_under_way_events_wait_and_reads_go_on(tea: Product) -> None:
    consume(completed(make_paid_order({tea: 1})))
    late = completed(make_paid_order({tea: 1}))
    stop = StopFlag()
    stop.request()
    with ranking_view.rebuilding():
        with pytest.raises(ranking_view.BeingRebuilt):
            BatchHandler(ranking.group()).handle([late], stop)
        assert in_redis() == [("Tea", 1)]
    consume(late)
    assert in_redis() == [("Tea", 2)]


@pytest.fixture
def refusals(monkeypatch: pytest.MonkeyPatch) -> list[Exception]:
    """Gets an entry whenever Redis refuses to count."""
    count = ranking_view.count
    refused: list[Exception] = []

    def watched(sales: Sequence[Sale]) -> int:
        try:
            return count(sales)
        except ServiceUnavailable as error:
            refused.append(error)
            raise

    monkeypatch.setattr(ranking_view, "count", watched)
    return refused


@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize("policy", ["retry_then_dead_letter", "log_only"])
def test_a_batch_goes_on_as_soon_as_the_rebuild_has_ended(
    policy: str, tea: Product, refusals: list[Exception], settings: Settings
) -> None:
    settings.ORDER_EFFECT_POLICIES = settings.ORDER_EFFECT_POLICIES | {"ranking": policy}
    order = completed(make_paid_order({tea: 1}))
    with ranking_view.rebuilding():
        waiting = in_another_session(lambda: consume(order))
        wait_until(lambda: bool(refusals), 10, "nothing was refused", 0.01)
    waiting.result(10)
    assert in_redis() == [("Tea", 1)]


def test_the_flag_of_a_killed_rebuild_expires(tea: Product) -> None:
    redis: Any = get_redis_connection("default")
    with ranking_view.rebuilding():
        assert 0 < redis.ttl("ranking:rebuilding") <= 60
    # No process is left to delete it.
    redis.set("ranking:rebuilding", "killed", px=500)
    consume(completed(make_paid_order({tea: 1})))
    assert in_redis() == [("Tea", 1)]


@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize("accident", ["flushed", "overtaken"])
def test_a_rebuild_that_was_overtaken_changes_nothing(accident: str, tea: Product) -> None:
    consume(completed(make_paid_order({tea: 1})))
    redis: Any = get_redis_connection("default")
    days = last_days(ranking_view.REBUILT_DAYS)
    with ranking_view.rebuilding() as staging:
        staging.add(days[-1], {tea.pk: 100}, ())
        if accident == "flushed":
            redis.flushdb()
        else:
            redis.set("ranking:rebuilding", "another", ex=60)
        with pytest.raises(ranking_view.RebuildLost, match="run it again"):
            staging.swap(days)
    if accident == "overtaken":
        assert in_redis() == [("Tea", 1)]
        # The flag of the other is not ours to take away.
        assert redis.get("ranking:rebuilding") == b"another"
    assert best_sellers(days=1, limit=5)[0].quantity == 1


def test_a_rebuild_that_is_told_to_stop_changes_nothing(tea: Product) -> None:
    consume(completed(make_paid_order({tea: 1})))
    make_paid_order({tea: 1})
    stop = StopFlag()
    stop.request()
    with pytest.raises(ServiceUnavailable, match="the ranking is unchanged"):
        rebuild(stop=stop)
    with pytest.raises(ServiceUnavailable, match="the ranking is unchanged"):
        ranking_rebuild_from([], stop=stop)
    assert in_redis() == [("Tea", 1)]
    assert list(get_redis_connection("default").scan_iter("ranking:staging:*")) == []
    rebuild(stop=StopFlag())
    assert in_redis() == [("Tea", 2)]


@pytest.fixture
def busy_shop(tea: Product, rice: Product) -> Iterator[Callable[[], None]]:
    """Three threads that have orders paid, some cancelled, and their events counted; call it to end them."""
    stop = threading.Event()

    def trade() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            order = make_paid_order({tea: 2, rice: 1}, cancelled_at=just_now() if number % 4 == 0 else None)
            consume(completed(order), *([cancelled(order)] if order.cancelled_at else []))

    traders = [in_another_session(trade) for _ in range(3)]

    def end() -> None:
        stop.set()
        for trader in traders:
            trader.result(30)

    yield end
    stop.set()


def rebuild_often(times: int) -> None:
    for _ in range(times):
        rebuild(stop=StopFlag())


@pytest.mark.usefixtures("loaded")
def test_rebuilding_while_events_are_counted_neither_loses_nor_doubles(busy_shop: Callable[[], None]) -> None:
    rebuild_often(10)
    busy_shop()
    assert in_redis() == in_postgresql() != []


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch, tea: Product) -> list[ReceivedMessage]:
    """A rebuild has read PostgreSQL and not swapped yet: then an order is paid and its event comes.

    The list gets the event if it was refused.
    """
    swap = ranking_view.Staging.swap
    refused: list[ReceivedMessage] = []
    told_to_stop = StopFlag()
    told_to_stop.request()

    def pay_and_swap(staging: ranking_view.Staging, days: Sequence[date]) -> None:
        event = completed(make_paid_order({tea: 1}))
        try:
            BatchHandler(ranking.group()).handle([event], told_to_stop)
        except ServiceUnavailable:
            refused.append(event)
        swap(staging, days)

    monkeypatch.setattr(ranking_view.Staging, "swap", pay_and_swap)
    return refused


@pytest.mark.usefixtures("loaded")
def test_an_event_that_comes_between_the_read_and_the_swap_waits(late: list[ReceivedMessage]) -> None:
    rebuild(stop=StopFlag())
    assert in_redis() == []
    consume(*late)
    assert in_redis() == in_postgresql() == [("Tea", 1)]


@pytest.mark.usefixtures("loaded")
def test_without_the_flag_an_event_between_the_read_and_the_swap_would_be_lost(
    late: list[ReceivedMessage], monkeypatch: pytest.MonkeyPatch
) -> None:
    careless = ranking_view._UNLESS_REBUILDING.replace("redis.call('EXISTS', KEYS[2]) == 1", "false")
    assert careless != ranking_view._UNLESS_REBUILDING
    monkeypatch.setattr(ranking_view, "_UNLESS_REBUILDING", careless)
    rebuild(stop=StopFlag())
    assert (late, in_redis(), in_postgresql()) == ([], [], [("Tea", 1)])
