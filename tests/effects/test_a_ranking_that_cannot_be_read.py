"""Anything at all in the keys of the ranking: PostgreSQL answers, and the ranking is rebuilt."""

from __future__ import annotations

from collections.abc import Callable
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.test import Client

from common.processes.lifecycle import StopFlag
from common.redis_client import redis_connection
from kafka_bridge.consuming.batch import BatchHandler
from kafka_bridge.models import DeadLetter
from orders.effects import ranking
from orders.models import Product
from orders.ranking import store as ranking_view
from orders.ranking.days import last_days
from tests.support.orders import completed, make_paid_order, make_product

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("redis_flushed")]

Spoil = Callable[[Any, str], object]


def become(kind: str, key: str) -> Spoil:
    """Another kind of value under a name of the ranking."""

    def spoil(redis: Any, day: str) -> None:
        name = key.format(day=day)
        redis.delete(name)
        if kind == "text":
            redis.set(name, "x")
        else:
            redis.rpush(name, "x")

    return spoil


def put(member: str | bytes, score: float | str) -> Spoil:
    return lambda redis, day: redis.zadd(f"ranking:quantities:{day}", {member: score})


QUANTITIES, EVENTS = "ranking:quantities:{day}", "ranking:events:{day}"
MEMBERS = {
    "no number": put("x", 1000),
    "no UTF-8": put(b"\xff", 1000),
    "no id": put("-5", 1000),
    "no 64-bit number": put("9" * 25, 1000),
    "infinitely many": put("1", "inf"),
    "more than there are": put("1", 1e300),
}
KINDS = {
    f"{kind} for {key}": become(kind, key)
    for key in (QUANTITIES, EVENTS, "ranking:loaded", "ranking:rebuilding")
    for kind in ("text", "list")
}


@pytest.fixture
def tea(transactional_db: None) -> Product:
    """A product of which one was sold, which the ranking knows."""
    product = make_product("Tea")
    sell(product)
    return product


def sell(product: Product) -> None:
    BatchHandler(ranking.group()).handle([completed(make_paid_order({product: 1}))], StopFlag())


def sold_of(client: Client, headers: dict[str, str]) -> list[tuple[str, int]]:
    answer = client.get("/api/v1/rankings/best-sellers", headers=headers)
    assert answer.status_code == 200
    return [(row["name"], row["quantity"]) for row in answer.json()["results"]]


@pytest.mark.parametrize("spoil", (MEMBERS | KINDS).values(), ids=MEMBERS | KINDS)
def test_best_sellers_are_right_and_events_go_on_counting(
    spoil: Spoil, tea: Product, client: Client, token: Callable[..., dict[str, str]]
) -> None:
    spoil(redis_connection(), str(last_days(1)[0]))
    assert sold_of(client, token(1)) == [("Tea", 1)]
    sell(tea)
    assert not DeadLetter.objects.exists()
    reconcile()
    assert ranking_view.best(last_days(30), 5) == [(tea.pk, 2)]
    assert sold_of(client, token(1)) == [("Tea", 2)]


def reconcile() -> None:
    out = StringIO()
    try:
        call_command("reconcile", "--repair", stdout=out)
    except CommandError as error:
        # Of what else is compared, here nothing is there to compare.
        raise AssertionError(out.getvalue()) from error
