"""The ranking of what was sold: every event counts once, whatever dies or is emptied in between."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from django.test import Client
from django_redis import get_redis_connection
from pytest_django import Settings
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from common.processes.lifecycle import StopFlag
from common.processes.outages import ServiceUnavailable
from devstack import wait_until
from kafka_bridge.consuming.batch import BatchHandler
from kafka_bridge.models import DeadLetter, ProcessedEvent
from kafka_bridge.registry import ReceivedMessage
from orders.effects import ranking
from orders.models import Order, Product
from orders.ranking import selectors as ranking_selectors
from orders.ranking import store as ranking_view
from orders.ranking.days import day_of, last_days, start_of
from orders.ranking.rebuild import ranking_rebuild as rebuild
from orders.ranking.rebuild import ranking_rebuild_from
from orders.ranking.sales import Sale
from orders.ranking.selectors import best_sellers
from tests.support.messages import message
from tests.support.orders import cancelled, completed, make_paid_order, make_product
from tests.support.threads import in_another_session

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("redis_flushed")]

Sold = list[tuple[str, int]]


@pytest.fixture
def tea(transactional_db: None) -> Product:
    return make_product("Tea")


@pytest.fixture
def rice(transactional_db: None) -> Product:
    return make_product("Rice")


@pytest.fixture
def loaded(transactional_db: None, redis_flushed: None) -> None:
    """Redis has a complete ranking, of nothing."""
    rebuild(stop=StopFlag())


def consume(*messages: ReceivedMessage) -> None:
    BatchHandler(ranking.group()).handle(messages, StopFlag())


def in_redis(days: int = 30) -> Sold:
    """The ranking as Redis has it, and only Redis."""
    found = ranking_view.best(last_days(days), 200)
    assert found is not None
    names = dict(Product.objects.values_list("id", "name"))
    return [(names[product_id], sold) for product_id, sold in found]


def in_postgresql(days: int = 30) -> Sold:
    names = dict(Product.objects.values_list("id", "name"))
    return [(names[product_id], sold) for product_id, sold in ranking_selectors._from_postgresql(last_days(days), 200)]


def just_now() -> datetime:
    return datetime.now(UTC)


# Counting


@pytest.mark.usefixtures("loaded")
def test_what_is_paid_rises_and_what_is_cancelled_falls(tea: Product, rice: Product) -> None:
    consume(completed(make_paid_order({tea: 2, rice: 3})), completed(make_paid_order({tea: 4})))
    assert in_redis() == [("Tea", 6), ("Rice", 3)]
    order = make_paid_order({tea: 5}, cancelled_at=just_now())
    consume(completed(order))
    assert in_redis() == [("Tea", 11), ("Rice", 3)]
    consume(cancelled(order))
    assert in_redis() == [("Tea", 6), ("Rice", 3)] == in_postgresql()


@pytest.mark.usefixtures("loaded")
def test_a_cancellation_that_comes_before_its_payment_nets_out(tea: Product, rice: Product) -> None:
    order = make_paid_order({tea: 5}, cancelled_at=just_now())
    consume(cancelled(order))
    assert in_redis() == []
    consume(completed(order), completed(make_paid_order({rice: 1})))
    assert in_redis() == [("Rice", 1)] == in_postgresql()


@pytest.mark.usefixtures("loaded")
def test_the_same_events_again_count_once(tea: Product) -> None:
    batch = [completed(make_paid_order({tea: 1})) for _ in range(3)]
    consume(*batch, *batch)
    consume(*batch)
    assert in_redis() == [("Tea", 3)]


@pytest.mark.usefixtures("loaded")
def test_a_group_that_is_rewound_after_its_inbox_was_lost_counts_once(tea: Product) -> None:
    batch = [completed(make_paid_order({tea: 1})) for _ in range(3)]
    consume(*batch)
    ProcessedEvent.objects.all().delete()
    consume(*batch)
    assert in_redis() == [("Tea", 3)]


def die_between_redis_and_postgresql(batch: Sequence[ReceivedMessage]) -> None:
    """What a process has done that dies after the call and before the commit."""
    group = ranking.group()
    assert group.call is not None
    assert group.call([group.decode(item) for item in batch], StopFlag()) == [None] * len(batch)
    assert not ProcessedEvent.objects.exists()


@pytest.mark.usefixtures("loaded")
def test_a_death_between_redis_and_postgresql_counts_once(tea: Product) -> None:
    batch = [completed(make_paid_order({tea: 1})) for _ in range(3)]
    die_between_redis_and_postgresql(batch)
    consume(*batch)
    assert in_redis() == [("Tea", 3)]
    assert ProcessedEvent.objects.count() == 3


@pytest.mark.usefixtures("loaded")
def test_without_the_ids_in_redis_such_a_death_would_count_twice(tea: Product, monkeypatch: pytest.MonkeyPatch) -> None:
    careless = ranking_view._COUNT.replace("redis.call('SADD', KEYS[index + 1], event_id) == 1", "true")
    assert careless != ranking_view._COUNT
    monkeypatch.setattr(ranking_view, "_COUNT", careless)
    batch = [completed(make_paid_order({tea: 1})) for _ in range(3)]
    die_between_redis_and_postgresql(batch)
    consume(*batch)
    assert in_redis() == [("Tea", 6)]


def test_a_payment_falls_on_the_day_it_has_in_seoul(tea: Product, rice: Product) -> None:
    midnight = start_of(last_days(1)[0])
    assert midnight.utcoffset() == timedelta(hours=9)
    before = make_paid_order({tea: 1}, paid_at=midnight - timedelta(microseconds=1))
    after = make_paid_order({rice: 1}, paid_at=midnight)
    for look in (in_redis, in_postgresql):
        consume(completed(before), completed(after))
        assert look(1) == [("Rice", 1)]
        assert look(2) == [("Tea", 1), ("Rice", 1)]


def test_another_time_zone_has_other_days(tea: Product, settings: Settings) -> None:
    consume(completed(make_paid_order({tea: 1})))
    settings.BUSINESS_TIME_ZONE = "America/New_York"
    assert ranking_view.best(last_days(1), 5) is None
    moment = datetime(2026, 3, 1, 4, 59, 59, tzinfo=UTC)
    assert (day_of(moment), day_of(moment + timedelta(seconds=1))) == (date(2026, 2, 28), date(2026, 3, 1))
    consume(completed(make_paid_order({tea: 2})))
    assert in_redis() == [("Tea", 3)]


@pytest.mark.usefixtures("loaded")
def test_days_are_kept_as_long_as_anybody_may_ask_for_them(tea: Product) -> None:
    consume(completed(make_paid_order({tea: 1})))
    redis: Any = get_redis_connection("default")
    (today,) = last_days(1)
    for key in (f"ranking:quantities:{today}", f"ranking:events:{today}"):
        assert timedelta(days=39) < timedelta(seconds=redis.ttl(key)) <= timedelta(days=41)


@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize(
    "paid_at", ["0001-01-01T00:00:00Z", "1969-12-31T00:00:00Z", "9999-11-30T00:00:00Z", "9999-12-31T23:59:59Z"]
)
def test_an_event_without_a_possible_day_is_a_dead_letter_and_the_others_count(paid_at: str, tea: Product) -> None:
    good = completed(make_paid_order({tea: 1}))
    bad = json.dumps(json.loads(good.value or b"") | {"paidAt": paid_at}).encode()
    consume(message(bad, topic="order-completed", headers=(("ce_type", b"order.completed.v1"),)), good)
    assert in_redis() == [("Tea", 1)]
    assert DeadLetter.objects.get().consumer_group == "ranking"


@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize("paid_at", ["1970-01-03T00:00:00Z", "9998-12-30T00:00:00Z"])
def test_days_that_nobody_asks_for_do_no_harm(paid_at: str, tea: Product) -> None:
    good = completed(make_paid_order({tea: 1}))
    far = json.dumps(json.loads(good.value or b"") | {"paidAt": paid_at}).encode()
    consume(message(far, topic="order-completed"), good)
    assert in_redis() == [("Tea", 1)]
    assert not DeadLetter.objects.exists()


# Redis emptied


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


@pytest.mark.usefixtures("loaded")
def test_scripts_that_redis_forgot_are_no_trouble(tea: Product) -> None:
    consume(completed(make_paid_order({tea: 1})))
    get_redis_connection("default").script_flush()
    consume(completed(make_paid_order({tea: 1})))
    assert in_redis() == [("Tea", 2)]


# Rebuilding


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
    # Nobody is left to take it away.
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


# The API


@pytest.fixture
def ask(client: Client, token: Callable[..., dict[str, str]]) -> Callable[..., Any]:
    def get(query: str = "") -> Any:
        return client.get(f"/api/v1/rankings/best-sellers{query}", headers=token(7))

    return get


def told(response: Any) -> Sold:
    assert response.status_code == 200
    assert response.json()["next"] is None
    return [(row["name"], row["quantity"]) for row in response.json()["results"]]


@pytest.fixture
def four_days(loaded: None, tea: Product, rice: Product) -> None:
    """Today tea, yesterday and the day before rice, the day before that much tea; something cancelled every day."""
    soup = make_product("Soup")
    sold = [{tea: 3}, {rice: 2}, {rice: 2}, {tea: 100}]
    for back, quantities in enumerate(sold):
        paid_at = just_now() - timedelta(days=back)
        consume(completed(make_paid_order(quantities, paid_at=paid_at)))
        order = make_paid_order({soup: 50}, paid_at=paid_at, cancelled_at=just_now())
        consume(completed(order), cancelled(order))


@pytest.mark.usefixtures("four_days")
def test_the_api_tells_the_best_of_the_last_days(ask: Callable[..., Any], tea: Product) -> None:
    assert ask("?days=1").json() == {"results": [{"productId": tea.pk, "name": "Tea", "quantity": 3}], "next": None}
    assert told(ask()) == [("Rice", 4), ("Tea", 3)]
    assert told(ask("?days=30")) == [("Tea", 103), ("Rice", 4)]
    assert told(ask("?days=30&limit=1")) == [("Tea", 103)]


@pytest.mark.usefixtures("four_days")
def test_redis_and_not_postgresql_is_asked_while_it_is_there(ask: Callable[..., Any]) -> None:
    Order.objects.all().delete()
    assert told(ask()) == [("Rice", 4), ("Tea", 3)]


@pytest.mark.usefixtures("four_days")
def test_the_api_tells_the_same_while_redis_is_empty(ask: Callable[..., Any]) -> None:
    get_redis_connection("default").flushdb()
    assert told(ask()) == [("Rice", 4), ("Tea", 3)]
    assert told(ask("?days=30&limit=1")) == [("Tea", 103)]


@contextmanager
def redis_away(settings: Settings) -> Iterator[None]:
    """Within, Redis is at a port where nobody listens."""
    there = settings.CACHES
    settings.CACHES = there | {"default": there["default"] | {"LOCATION": "redis://127.0.0.1:1/0"}}
    yield
    settings.CACHES = there


@pytest.mark.usefixtures("four_days")
def test_the_api_tells_the_same_while_redis_is_away(ask: Callable[..., Any], settings: Settings) -> None:
    with redis_away(settings):
        assert told(ask()) == [("Rice", 4), ("Tea", 3)]
        assert told(ask("?days=1")) == [("Tea", 3)]


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


@pytest.mark.parametrize("empty", [False, True])
def test_equals_are_told_by_product_id(empty: bool, ask: Callable[..., Any]) -> None:
    products = [make_product(f"P{number}") for number in range(12)]
    consume(completed(make_paid_order(dict.fromkeys(products, 2) | {products[7]: 3, products[9]: 1})))
    if empty:
        get_redis_connection("default").flushdb()
    assert told(ask("?limit=4")) == [("P7", 3), ("P0", 2), ("P1", 2), ("P2", 2)]
    assert len(told(ask("?limit=200"))) == 12


def test_a_product_that_is_not_ours_is_told_by_its_number(ask: Callable[..., Any], tea: Product) -> None:
    order = make_paid_order({tea: 1})
    foreign = completed(order)
    assert foreign.value is not None
    value = foreign.value.replace(f'"productId":{tea.pk}'.encode(), b'"productId":999999')
    Order.objects.all().delete()
    consume(message(value, topic="order-completed"))
    assert told(ask()) == [("#999999", 1)]


@pytest.mark.parametrize(
    "query",
    [
        *("days=0", "days=31", "days=-1", "days=x", "days=", "days=1.5", "days=%D9%A3", "days=0000000000031"),
        *("limit=0", "limit=201", "limit=", "limit=9999999999999999999"),
    ],
)
def test_other_values_are_refused(query: str, ask: Callable[..., Any]) -> None:
    response = ask(f"?{query}")
    assert (response.status_code, response.json()["code"]) == (400, "invalid")
    assert response.json()["errors"][0]["field"] == query.partition("=")[0]


def test_nobody_sees_it_without_a_token(client: Client, db: None) -> None:
    assert client.get("/api/v1/rankings/best-sellers").status_code == 401
