"""Paying waits for the payment provider and for PostgreSQL, and for no other service."""

from __future__ import annotations

import http.client
import json
import socket
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pytest_django import Settings

from demo.processes import WebProcess, wait_until_ready
from devstack import Part, Stack
from devstack.ports import free_port
from orders.models import Order, Product
from tests.processes.conftest import Web
from tests.support.published import unpublished_rows
from tests.support.service import environment

pytestmark = pytest.mark.django_db(transaction=True)

MINJI = 7
ORDERS = 10
# A call to one of them waits for its timeout: half a second to connect to Redis, more for all others.
LONGEST_SECONDS = 0.4


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """A Redis and a Kafka that only this test uses."""
    own = Stack("orders-away", root=tmp_path, environ={"DATABASE_URL": "postgres://given"}, report=print)
    with own.used():
        yield own


@pytest.fixture
def no_provider() -> Iterator[str]:
    """The address of a service that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/"


@pytest.fixture
def services(stack: Stack, settings: Settings) -> list[Part]:
    redis, kafka = stack.part("redis"), stack.part("kafka-1")
    settings.REDIS_URL = f"redis://127.0.0.1:{redis.port}/0"
    settings.KAFKA_BOOTSTRAP_SERVERS = f"127.0.0.1:{kafka.port}"
    return [redis, kafka]


@pytest.fixture
def web(transactional_db: None, services: list[Part], no_provider: str, tmp_path: Path) -> Iterator[Web]:
    """A web process of the test's own, on those services."""
    port = free_port()
    env = environment(
        PORT=str(port),
        HOST="127.0.0.1",
        ALIMTALK_URL=no_provider,
        ALIMTALK_KEY="for-tests-only",
        DATA_PLATFORM_URL=no_provider,
    )
    process = WebProcess(env, tmp_path / "web.log")
    with process:
        wait_until_ready(process, port)
        yield Web(process, port)
    print(process.log_tail(40))


class Client:
    """One connection of Minji's."""

    def __init__(self, port: int, headers: dict[str, str]) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        self._headers = {**headers, "Content-Type": "application/json"}
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def close(self) -> None:
        self._connection.close()

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """The status and the body of the answer; how long it took is noted under the last word of ``path``."""
        began = time.monotonic()
        self._connection.request("POST", path, json.dumps(body), self._headers)
        answer = self._connection.getresponse()
        told = json.load(answer)
        self.seconds[path.rpartition("/")[2]].append(time.monotonic() - began)
        return answer.status, told

    def buy(self, product: Product) -> int:
        """Place an order, pay it and cancel it again; returns its id."""
        status, order = self.post("/api/v1/orders", {"items": [{"productId": product.id, "quantity": 1}]})
        assert status == 201, order
        for step, state in (("pay", "PAID"), ("cancel", "CANCELLED")):
            status, told = self.post(f"/api/v1/orders/{order['orderId']}/{step}", {})
            assert (status, told["status"]) == (200, state)
        return int(order["orderId"])


def test_orders_are_placed_paid_and_cancelled_while_redis_kafka_and_everybody_told_of_them_hang(
    web: Web, services: list[Part], token: Callable[..., dict[str, str]]
) -> None:
    tea = Product.objects.create(name="tea", price=1000)
    client = Client(web.port, token(MINJI))
    client.buy(tea)
    client.seconds.clear()
    for part in services:
        part.freeze()
    try:
        orders = [client.buy(tea) for _ in range(ORDERS)]
    finally:
        client.close()
        for part in services:
            part.thaw()
    assert client.seconds.keys() == {"orders", "pay", "cancel"}
    for step, seconds in client.seconds.items():
        assert statistics.median(seconds) < LONGEST_SECONDS, (step, seconds)
    assert Order.objects.filter(id__in=orders, status="CANCELLED").count() == ORDERS
    waiting = unpublished_rows().filter(key__in=[str(order_id).encode() for order_id in orders])
    assert waiting.count() == 2 * ORDERS
