"""The best sellers over HTTP, from Redis or from PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django_redis import get_redis_connection
from pytest_django import Settings

from orders.models import Order, Product
from tests.support.messages import message
from tests.support.orders import cancelled, completed, make_paid_order, make_product
from tests.support.ranking import (
    Sold,
    consume,
    just_now,
    redis_away,
)

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("redis_flushed")]


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


@pytest.mark.usefixtures("four_days")
def test_the_api_tells_the_same_while_redis_is_away(ask: Callable[..., Any], settings: Settings) -> None:
    with redis_away(settings):
        assert told(ask()) == [("Rice", 4), ("Tea", 3)]
        assert told(ask("?days=1")) == [("Tea", 3)]


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
