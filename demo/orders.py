"""The shop after the sale: orders over HTTP, some with the coupons that were won, one of them cancelled."""

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

_CATALOGUE = (("Keyboard", 89_000), ("Headphones", 129_000), ("Mug", 12_000), ("Lamp", 45_000), ("Notebook", 6_500))
_EFFECTS = ("notification", "data-platform", "ranking", "monitoring")
_CONNECTIONS = 16
_WITH_COUPON = 3
_PAID_SECONDS = 300.0
_EFFECT_SECONDS = 120.0
_LOOK_SECONDS = 0.1


class BestSeller(msgspec.Struct, frozen=True, rename="camel"):
    product_id: int
    name: str
    quantity: int


class _BestSellers(msgspec.Struct, frozen=True):
    results: list[BestSeller]


@dataclass(slots=True)
class OrderOutcome:
    """What happened. Durations in seconds, money in won; ``complaints`` has a line for whatever does not hold."""

    paid: list[CreatedOrder] = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)
    paid_in: float = 0.0
    told_in: float = 0.0
    best_sellers: list[BestSeller] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    @property
    def with_coupon(self) -> list[CreatedOrder]:
        return [order for order in self.paid if order.user_coupon_id is not None]


class OrderRound:
    """Places and pays ``count`` orders of the sale's users, every third with a coupon if its user won one."""

    def __init__(self, port: int, coupons: Sequence[Coupon], *, count: int) -> None:
        self._port = port
        self._count = count
        self._products = Product.objects.bulk_create([Product(name=name, price=price) for name, price in _CATALOGUE])
        won = UserCoupon.objects.filter(coupon__in=coupons, status=UserCoupon.Status.ISSUED).order_by("id")
        self._won = dict(won.values_list("user_id", "id")[:count])
        self._users = [*self._won, *(user_id for user_id in range(1, count + 1) if user_id not in self._won)][:count]
        self._tokens = bearer_tokens(self._users)

    def run(self, paying: AbstractContextManager[Progress]) -> OrderOutcome:
        """Place, pay, cancel one, and wait until every effect has had every event."""
        outcome = OrderOutcome()
        started = time.monotonic()
        with paying as progress:
            try:
                asyncio.run(asyncio.wait_for(self._pay_all(outcome, progress), _PAID_SECONDS))
            except TimeoutError:
                outcome.complaints.append(f"I7 not every order was paid within {_PAID_SECONDS:.0f} s")
        outcome.paid_in = time.monotonic() - started
        self._await_effects(outcome)
        outcome.told_in = time.monotonic() - started
        asyncio.run(self._look_at_ranking(outcome))
        return outcome

    async def _pay_all(self, outcome: OrderOutcome, progress: Progress) -> None:
        waiting = iter(enumerate(self._users))
        async with asyncio.TaskGroup() as group:
            for _ in range(min(_CONNECTIONS, len(self._users))):
                group.create_task(self._work_off(waiting, outcome, progress))
        if outcome.with_coupon:
            await self._cancel(outcome.with_coupon[0], outcome)

    async def _work_off(self, waiting: Iterator[tuple[int, int]], outcome: OrderOutcome, progress: Progress) -> None:
        connection = Connection(self._port)
        try:
            for number, user_id in waiting:
                body: dict[str, Any] = {"items": self._wishes()}
                if number % _WITH_COUPON == 0 and user_id in self._won:
                    body["userCouponId"] = self._won[user_id]
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
        user_id = next(user_id for user_id, coupon in self._won.items() if coupon == order.user_coupon_id)
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

    def _wishes(self) -> list[dict[str, int]]:
        chosen = random.sample(self._products, random.randint(1, 3))
        return [{"productId": product.id, "quantity": random.randint(1, 3)} for product in chosen]

    def _await_effects(self, outcome: OrderOutcome) -> None:
        events = Order.objects.filter(id__in=[order.order_id for order in outcome.paid])
        wanted = {event_id for event_id in events.values_list("completed_event_id", flat=True) if event_id}
        deadline = time.monotonic() + _EFFECT_SECONDS
        for group in _EFFECTS:
            told = ProcessedEvent.objects.filter(consumer_group=group, event_id__in=wanted)
            while (count := told.count()) < len(wanted):
                if time.monotonic() > deadline:
                    outcome.complaints.append(f"I7 {group} has had {count} of {len(wanted)} paid orders")
                    break
                time.sleep(_LOOK_SECONDS)

    async def _look_at_ranking(self, outcome: OrderOutcome) -> None:
        """Read the best sellers of today until they are what was sold, and was not given back."""
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
            ours = [row for row in msgspec.json.decode(raw, type=_BestSellers).results if row.product_id in sold]
            if {row.product_id: row.quantity for row in ours} == sold:
                break
            if time.monotonic() > deadline:
                outcome.complaints.append("I7 the ranking does not show what was sold")
                break
            await asyncio.sleep(_LOOK_SECONDS)
        connection.close()
        outcome.best_sellers = ours
