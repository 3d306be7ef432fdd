"""Every process of the Procfile on tables and topics of its own, and crowds that are served by it."""

from __future__ import annotations

import asyncio
import json
import secrets
import statistics
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.conf import settings
from django.db import connection
from django_redis import get_redis_connection

from coupons.admission import ADMISSIONS
from coupons.models import Coupon, RolloutChange
from demo.load_client import Answer, Ask, Connection, Crowd, encode_request
from demo.sale import bearer_tokens
from devstack import wait_until
from kafka_bridge.client import delete_topics, ensure_topics
from kafka_bridge.models import ProcessedEvent
from orders.models import Order, Product
from tests.processes.conftest import Web
from tests.support.factories import CouponFactory
from tests.support.ledger import when_decided
from tests.support.provider import Provider
from tests.support.service import Service, environment
from tests.support.tables import empty_tables

EFFECTS = ("notification", "data-platform", "ranking", "monitoring")
USERS = 60
ORDERS = 12
SECONDS = 90.0


@dataclass
class Shop:
    """The running system, and the answers that its crowds got."""

    port: int
    service: Service
    coupons: Sequence[Coupon]
    products: list[Product]
    answers: list[Answer] = field(default_factory=list)
    sold: Counter[int] = field(default_factory=Counter)
    # The seconds of each step without any bad datum.
    usual: dict[str, float] = field(default_factory=dict)

    @property
    def gate(self) -> Coupon:
        return next(coupon for coupon in self.coupons if coupon.admission == "gate")

    def serve_crowd(self) -> dict[str, float]:
        """Every user gets a coupon and some order with it; returns the seconds of each step."""
        first = len(self.answers) + 1
        users = range(first, first + USERS)
        tokens = bearer_tokens(users)
        began = time.monotonic()
        answers = self._ask(users, tokens)
        when_decided(answers, SECONDS)
        decided = time.monotonic()
        orders = asyncio.run(self._shop(answers, tokens))
        paid = time.monotonic()
        rows = Order.objects.filter(id__in=orders).values_list("completed_event_id", flat=True)
        events = [event for event in rows if event is not None]
        assert len(events) == ORDERS
        for group in EFFECTS:
            wait_until(partial(_has_handled, group, events), SECONDS, f"{group} misses orders")
        reached = time.monotonic()
        self.answers += answers
        return {
            "accept": statistics.median(answer.latency for answer in answers),
            "decide": decided - began,
            "shop": paid - decided,
            "effects": reached - paid,
        }

    def _ask(self, users: Sequence[int], tokens: dict[int, str]) -> list[Answer]:
        wanted = [(user_id, self.coupons[user_id % len(self.coupons)]) for user_id in users]
        asks = [Ask(str(uuid4()), user_id, coupon.pk, coupon.coupon_type, user_id) for user_id, coupon in wanted]
        crowd = Crowd(self.port, tokens, connections=8)
        asyncio.run(asyncio.wait_for(crowd.ask_all(asks), SECONDS))
        # A 503 before any work is an answer, and its retry counts in the latency; a lost connection is a fault.
        assert crowd.retries.keys() <= {"503"}
        assert {answer.status for answer in crowd.answers} == {202}
        return crowd.answers

    async def _shop(self, answers: Sequence[Answer], tokens: dict[int, str]) -> list[int]:
        """Every user reads the result, some read lists and pay an order; returns the ids of the orders."""
        client = Connection(self.port)
        orders = []
        for number, answer in enumerate(answers):
            token = tokens[answer.ask.user_id]
            result = await self.get(f"/api/v1/issue-requests/{answer.request_id}", token, client)
            assert (result["status"], result["reason"]) == ("SUCCESS", None)
            if number >= ORDERS:
                continue
            coupons = await self.get(f"/api/v1/users/{answer.ask.user_id}/coupons", token, client)
            assert [one["couponId"] for one in coupons["results"]] == [answer.ask.coupon_id]
            listed = await self.get("/api/v1/coupons", token, client)
            assert {coupon.pk for coupon in self.coupons} <= {one["couponId"] for one in listed["results"]}
            product = self.products[number % len(self.products)]
            body = {"items": [{"productId": product.pk, "quantity": 2}], "userCouponId": result["userCouponId"]}
            order = await self._call("POST", "/api/v1/orders", token, client, body, 201)
            await self._call("POST", f"/api/v1/orders/{order['orderId']}/pay", token, client, {}, 200)
            orders.append(order["orderId"])
            self.sold[product.pk] += 2
        client.close()
        return orders

    async def get(self, path: str, token: str, client: Connection) -> Any:
        return await self._call("GET", path, token, client, None, 200)

    async def _call(self, method: str, path: str, token: str, client: Connection, body: Any, wanted: int) -> Any:
        status, raw = await client.exchange(encode_request(method, path, self.port, {"authorization": token}, body))
        assert status == wanted, (path, status, raw)
        return json.loads(raw)

    def read(self, path: str, user_id: int) -> Any:
        """The JSON of a GET that must be answered 200."""
        (raw,) = self._ask_each(path, [bearer_tokens([user_id])[user_id]], {200})
        return json.loads(raw[1])

    def statuses(self, path: str, tokens: Sequence[str]) -> list[int]:
        """The status of a GET with each of these tokens."""
        return [status for status, _ in self._ask_each(path, tokens, {200, 401})]

    def _ask_each(self, path: str, tokens: Sequence[str], wanted: Collection[int]) -> list[tuple[int, bytes]]:
        async def ask() -> list[tuple[int, bytes]]:
            client = Connection(self.port)
            try:
                requests = [encode_request("GET", path, self.port, {"authorization": token}) for token in tokens]
                return [await client.exchange(request) for request in requests]
            finally:
                client.close()

        answers = asyncio.run(ask())
        assert {status for status, _ in answers} <= set(wanted), answers
        return answers


def _has_handled(group: str, events: Sequence[UUID]) -> bool:
    return ProcessedEvent.objects.filter(consumer_group=group, event_id__in=events).count() == len(events)


class System:
    """Every process of the Procfile on empty tables and topics of its own: started anew after a failure only."""

    def __init__(self, web: Web, folder: Path) -> None:
        self._web = web
        self._folder = folder
        self._running: ExitStack | None = None
        self._shop: Shop | None = None
        # Whether the last test that used it came to its end.
        self.is_sound = False

    def shop(self) -> Shop:
        """The shop, in which a first crowd has been served."""
        if self._shop is None or not self.is_sound:
            self.stop()
            self._running = ExitStack()
            self._shop = self._running.enter_context(_running_shop(self._web, self._folder))
            self._shop.usual = self._shop.serve_crowd()
        self.is_sound = False
        return self._shop

    def stop(self) -> None:
        if self._running is not None:
            self._running.close()
            self._running = self._shop = None


@contextmanager
def _running_shop(web: Web, folder: Path) -> Iterator[Shop]:
    get_redis_connection("default").flushdb()
    with ExitStack() as stack:
        alimtalk = Provider()
        stack.callback(alimtalk.close)
        alimtalk.up()
        stack.callback(get_redis_connection("default").flushdb)
        stack.enter_context(_without_checks())
        stack.enter_context(_own_topics())
        service = Service(
            folder, environment(ALIMTALK_URL=alimtalk.url, ALIMTALK_KEY="key", RECONCILE_PATIENCE_SECONDS="5")
        )
        stack.callback(service.end)
        RolloutChange.objects.create(flag="issue-worker", percent=50)
        coupons = [CouponFactory.create(admission=name, total_quantity=10_000) for name in ADMISSIONS]
        products = [Product.objects.create(name=name, price=10_000) for name in ("tea", "mug")]
        for role in ("relay", "issuer", "effects", "orders", "worker", "reconciler"):
            service.start(role)
        yield Shop(web.port, service, coupons, products)


@contextmanager
def _without_checks() -> Iterator[None]:
    """Tables that take what an older version, or a restore, may have left in them; emptied at the end."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint"
            " WHERE contype = 'c' AND conrelid IN ('coupons_coupon'::regclass, 'orders_product'::regclass)"
        )
        constraints = cursor.fetchall()
        for table, name, _ in constraints:
            cursor.execute(f"ALTER TABLE {table} DROP CONSTRAINT {name}")
    yield
    empty_tables()
    with connection.cursor() as cursor:
        for table, name, definition in constraints:
            cursor.execute(f"ALTER TABLE {table} ADD CONSTRAINT {name} {definition}")


@contextmanager
def _own_topics() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "KAFKA_TOPIC_PREFIX", f"t{secrets.token_hex(4)}-")
        created, _ = ensure_topics(settings.KAFKA_ROUTES)
        yield
        delete_topics(created)
