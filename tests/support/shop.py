"""Clients of the shop: they place orders over HTTP and pay them, and insist until they have an answer."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from demo.load_client import Connection, encode_request
from demo.sale import bearer_tokens
from orders.models import Product
from orders.schemas import CreatedOrder, PaidOrder

_SECONDS = 240.0


class Shoppers:
    """``clients`` connections that place and pay ``orders`` orders of a piece of one of ``products`` each."""

    def __init__(self, port: int, products: Sequence[Product], *, orders: int, clients: int) -> None:
        self.paid: list[CreatedOrder] = []
        self.failures: Counter[str] = Counter()
        self._port = port
        self._products = products
        self._orders = orders
        self._clients = clients
        self._tokens = bearer_tokens(range(1, orders + 1))
        self._thread = threading.Thread(target=self._run, name="shoppers", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def finish(self) -> list[CreatedOrder]:
        """Wait until all are paid and return them."""
        self._thread.join(_SECONDS)
        assert not self._thread.is_alive(), f"{len(self.paid)} of {self._orders} paid; {dict(self.failures)}"
        assert len(self.paid) == self._orders, dict(self.failures)
        return self.paid

    def _run(self) -> None:
        asyncio.run(self._pay_all())

    async def _pay_all(self) -> None:
        users = iter(range(1, self._orders + 1))
        async with asyncio.TaskGroup() as group:
            for _ in range(self._clients):
                group.create_task(self._work_off(users))

    async def _work_off(self, users: Iterator[int]) -> None:
        connection = Connection(self._port)
        try:
            for user_id in users:
                product = self._products[user_id % len(self._products)]
                body = {"items": [{"productId": product.id, "quantity": user_id % 3 + 1}]}
                created = await self._post(connection, user_id, "/api/v1/orders", body, CreatedOrder)
                if created is None:
                    continue
                path = f"/api/v1/orders/{created.order_id}/pay"
                if await self._post(connection, user_id, path, {}, PaidOrder) is not None:
                    self.paid.append(created)
        finally:
            connection.close()

    async def _post(
        self, connection: Connection, user_id: int, path: str, body: dict[str, Any], kind: type[msgspec.Struct]
    ) -> Any:
        headers = {"authorization": self._tokens[user_id], "idempotency-key": f"{path}-{user_id}"}
        message = encode_request("POST", path, self._port, headers, body)
        status, raw, _ = await connection.insist(message, self.failures)
        if status not in (200, 201):
            self.failures[f"{path} {status} {raw.decode()}"] += 1
            return None
        return msgspec.json.decode(raw, type=kind)
