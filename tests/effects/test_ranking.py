"""The ranking of what was sold: every event counts once, on its day."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from django_redis import get_redis_connection
from pytest_django import Settings

from kafka_bridge.models import DeadLetter, ProcessedEvent
from orders.models import Product
from orders.ranking import store as ranking_view
from orders.ranking.days import day_of, last_days, start_of
from tests.support.messages import message
from tests.support.orders import cancelled, completed, make_paid_order
from tests.support.ranking import (
    consume,
    die_between_redis_and_postgresql,
    in_postgresql,
    in_redis,
    just_now,
)

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("redis_flushed")]


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
