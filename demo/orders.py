"""The shop after the sale: places and pays orders over HTTP, some with issued coupons, and cancels one of them."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import msgspec

from coupons.models import Coupon, UserCoupon
from demo.load_client import Connection, encode_request
from demo.sale import Progress, bearer_tokens
from kafka_bridge.models import ProcessedEvent
from orders.models import Order, Product
from orders.schemas import CancelledOrder, CreatedOrder, PaidOrder

_PRODUCTS = (("Keyboard", 89_000), ("Headphones", 129_000), ("Mug", 12_000), ("Lamp", 45_000), ("Notebook", 6_500))
_EFFECTS = ("notification", "data-platform", "ranking", "monitoring")
_CONNECTIONS = 16
_WITH_COUPON = 3
_PAID_SECONDS = 300.0
_EFFECT_SECONDS = 120.0
_POLL_SECONDS = 0.1


class BestSeller(msgspec.Struct, frozen=True, rename="camel"):
    product_id: int
    name: str
    quantity: int


class _BestSellers(msgspec.Struct, frozen=True):
    results: list[BestSeller]


@dataclass(slots=True)
class OrderOutcome:
    """Result of the orders. Durations in seconds, money in won; ``complaints`` has a line per failed check."""

    paid: list[CreatedOrder] = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)
    paid_in: float = 0.0
    processed_in: float = 0.0
    best_sellers: list[BestSeller] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    @property
    def with_coupon(self) -> list[CreatedOrder]:
        return [order for order in self.paid if order.user_coupon_id is not None]


class OrderRound:
    """Places and pays ``count`` orders of the sale's users, every third with a coupon if its user has one."""

    def __init__(self, port: int, coupons: Sequence[Coupon], *, count: int) -> None:
        self._port = port
        self._count = count
        self._products = Product.objects.bulk_create([Product(name=name, price=price) for name, price in _PRODUCTS])
        issued = UserCoupon.objects.filter(coupon__in=coupons, status=UserCoupon.Status.ISSUED).order_by("id")
        self._issued = dict(issued.values_list("user_id", "id")[:count])
        others = (user_id for user_id in range(1, count + 1) if user_id not in self._issued)
        self._users = [*self._issued, *others][:count]
        self._tokens = bearer_tokens(self._users)

    def run(self, paying: AbstractContextManager[Progress]) -> OrderOutcome:
        """Place and pay the orders, cancel one, and wait until every effect has processed every event."""
        outcome = OrderOutcome()
        started = time.monotonic()
        with paying as progress:
            try:
                asyncio.run(asyncio.wait_for(self._pay_all(outcome, progress), _PAID_SECONDS))
            except TimeoutError:
                outcome.complaints.append(f"I7 not every order was paid within {_PAID_SECONDS:.0f} s")
        outcome.paid_in = time.monotonic() - started
        self._await_effects(outcome)
        outcome.processed_in = time.monotonic() - started
        asyncio.run(self._check_ranking(outcome))
        return outcome

    async def _pay_all(self, outcome: OrderOutcome, progress: Progress) -> None:
        remaining = iter(enumerate(self._users))
        async with asyncio.TaskGroup() as group:
            for _ in range(min(_CONNECTIONS, len(self._users))):
                group.create_task(self._pay_remaining(remaining, outcome, progress))
        if outcome.with_coupon:
            await self._cancel(outcome.with_coupon[0], outcome)

    async def _pay_remaining(
        self, remaining: Iterator[tuple[int, int]], outcome: OrderOutcome, progress: Progress
    ) -> None:
        connection = Connection(self._port)
        try:
            for number, user_id in remaining:
                body: dict[str, Any] = {"items": self._random_items()}
                if number % _WITH_COUPON == 0 and user_id in self._issued:
                    body["userCouponId"] = self._issued[user_id]
                created = await self._post(connection, user_id, "/api/v1/orders", body, CreatedOrder, outcome)
                if created is None:
                    continue
                path = f"/api/v1/orders/{created.order_id}/pay"
                if await self._post(connection, user_id, path, {}, PaidOrder, outcome):
                    outcome.paid.append(created)
                progress(len(outcome.paid))
        finally:
            connection.close()

    async def _cancel(self, order: CreatedOrder, outcome: OrderOutcome) -> None:
        connection = Connection(self._port)
        user_id = next(user_id for user_id, coupon in self._issued.items() if coupon == order.user_coupon_id)
        path = f"/api/v1/orders/{order.order_id}/cancel"
        if await self._post(connection, user_id, path, {}, CancelledOrder, outcome):
            outcome.cancelled.append(order.order_id)
        connection.close()

    async def _post(
        self,
        connection: Connection,
        user_id: int,
        path: str,
        body: dict[str, Any],
        kind: type[msgspec.Struct],
        outcome: OrderOutcome,
    ) -> Any:
        headers = {"authorization": self._tokens[user_id], "idempotency-key": secrets.token_hex(16)}
        message = encode_request("POST", path, self._port, headers, body)
        status, raw, _ = await connection.insist(message, Counter())
        if status not in (200, 201):
            outcome.complaints.append(f"I7 {path} was answered {status}: {raw.decode()}")
            return None
        return msgspec.json.decode(raw, type=kind)

    def _random_items(self) -> list[dict[str, int]]:
        chosen = random.sample(self._products, random.randint(1, 3))
        return [{"productId": product.id, "quantity": random.randint(1, 3)} for product in chosen]

    def _await_effects(self, outcome: OrderOutcome) -> None:
        events = Order.objects.filter(id__in=[order.order_id for order in outcome.paid])
        wanted = {event_id for event_id in events.values_list("completed_event_id", flat=True) if event_id}
        deadline = time.monotonic() + _EFFECT_SECONDS
        for group in _EFFECTS:
            processed = ProcessedEvent.objects.filter(consumer_group=group, event_id__in=wanted)
            while (count := processed.count()) < len(wanted):
                if time.monotonic() > deadline:
                    outcome.complaints.append(f"I7 {group} has processed {count} of {len(wanted)} paid orders")
                    break
                time.sleep(_POLL_SECONDS)

    async def _check_ranking(self, outcome: OrderOutcome) -> None:
        """Read today's best sellers until they match what was sold and not cancelled."""
        sold: Counter[int] = Counter()
        for order in outcome.paid:
            if order.order_id not in outcome.cancelled:
                for item in order.items:
                    sold[item.product_id] += item.quantity
        connection = Connection(self._port)
        deadline = time.monotonic() + _EFFECT_SECONDS
        headers = {"authorization": self._tokens[self._users[0]]}
        message = encode_request("GET", "/api/v1/rankings/best-sellers?days=1&limit=200", self._port, headers)
        while True:
            _, raw, _ = await connection.insist(message, Counter())
            rows = [row for row in msgspec.json.decode(raw, type=_BestSellers).results if row.product_id in sold]
            if {row.product_id: row.quantity for row in rows} == sold:
                break
            if time.monotonic() > deadline:
                outcome.complaints.append("I7 the ranking does not show what was sold")
                break
            await asyncio.sleep(_POLL_SECONDS)
        connection.close()
        outcome.best_sellers = rows
