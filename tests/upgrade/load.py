"""Load on the web processes of two versions, spread as a load balancer spreads it."""

from __future__ import annotations

import asyncio
import json
import secrets
import threading
import time
from collections import Counter
from collections.abc import Sequence
from itertools import count
from typing import Any, NamedTuple
from uuid import UUID

from coupons.models import Coupon
from demo.load_client import Ask, Connection, encode_request
from demo.sale import bearer_tokens
from devstack import wait_until
from tests.cluster.load import Span

_CLIENTS = 8
_END_SECONDS = 60.0
_RESULT_SECONDS = 30.0
_POLL_SECONDS = 0.1
_RETRY_SECONDS = 0.05
# Leaves CPU to the processes of two versions.
_PAUSE_SECONDS = 0.05
_MOST_VISITORS = 20_000


class Web(NamedTuple):
    port: int
    connection: Connection


class Visitors:
    """Users who ask for a coupon. Every third waits for the result and pays an order with the coupon; some cancel it.

    Every call goes to one version and then, under the same Idempotency-Key, to the other. A call that a version does
    not answer is repeated at the other.
    """

    def __init__(self, ports: Sequence[int], coupons: Sequence[Coupon], product_id: int) -> None:
        """``ports`` are those of the web processes of both versions."""
        self.spans: dict[UUID, Span] = {}
        # How many answers came from the web process with a port.
        self.served: Counter[int] = Counter()
        self.refusals: Counter[str] = Counter()
        # Why calls were made again.
        self.retries: Counter[str] = Counter()
        # Answers that no client may get.
        self.complaints: list[str] = []
        self.paid: list[int] = []
        self.cancelled: list[int] = []
        self._ports = ports
        self._coupons = coupons
        self._product_id = product_id
        self._tokens = bearer_tokens(range(1, _MOST_VISITORS))
        self._users = count(1)
        self._clock = count()
        self._enough = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._visit_all()), name="visitors", daemon=True)

    def start(self) -> None:
        self._started_at = time.monotonic()
        self._thread.start()

    def when_at(self, seconds: float) -> None:
        """Wait until the visits have lasted for so long."""
        wait_until(lambda: time.monotonic() - self._started_at >= seconds, seconds + 1.0, "")

    def when_served(self, port: int, number: int) -> None:
        """Wait until that web process has given so many answers."""
        wait_until(
            lambda: self.served[port] >= number, _END_SECONDS, f"{self.served} answers; {self.retries}", interval=0.1
        )

    def finish(self) -> None:
        """Begin no more visits, and wait until those under way have ended."""
        self._enough.set()
        self._thread.join(_END_SECONDS)
        assert not self._thread.is_alive(), f"calls without an answer; {self.retries}"

    async def _visit_all(self) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(_CLIENTS):
                group.create_task(self._be_client())

    async def _be_client(self) -> None:
        webs = [Web(port, Connection(port)) for port in self._ports]
        try:
            while not self._enough.is_set():
                user = next(self._users)
                await self._visit(user, webs if user % 2 else webs[::-1])
                await asyncio.sleep(_PAUSE_SECONDS)
        finally:
            for web in webs:
                web.connection.close()

    async def _visit(self, user: int, webs: Sequence[Web]) -> None:
        coupon = self._coupons[user // 6 % len(self._coupons)]
        path, wanted = Ask("", user, coupon.id, coupon.coupon_type, endpoint=user).target()
        asked = next(self._clock)
        status, body = await self._call_both(user, webs, path, wanted)
        if status != 202:
            return
        self.spans[UUID(body["requestId"])] = Span(asked, next(self._clock))
        if user % 3 == 0:
            result = await self._result(user, webs[::-1], body["requestId"])
            if result["status"] == "SUCCESS":
                await self._buy(user, webs, result["userCouponId"])

    async def _buy(self, user: int, webs: Sequence[Web], user_coupon_id: int) -> None:
        wanted = {"items": [{"productId": self._product_id, "quantity": 1}], "userCouponId": user_coupon_id}
        _, order = await self._call_both(user, webs, "/api/v1/orders", wanted)
        path = f"/api/v1/orders/{order['orderId']}"
        status, _ = await self._call_both(user, webs[::-1], f"{path}/pay", {})
        if status == 200:
            self.paid.append(order["orderId"])
        if user // 3 % 2:
            status, _ = await self._call_both(user, webs, f"{path}/cancel", {})
            if status == 200:
                self.cancelled.append(order["orderId"])

    async def _call_both(self, user: int, webs: Sequence[Web], path: str, body: Any) -> tuple[int, Any]:
        """Make a call at the first version and, unless that refused it, at the other; returns the first answer."""
        key = secrets.token_hex(16)
        answer = await self._call(user, webs, "POST", path, body, key)
        if answer[0] >= 300:
            self.refusals[f"{answer[0]} {answer[1].get('code')}"] += 1
            return answer
        repeated = await self._call(user, webs[::-1], "POST", path, body, key)
        if answer != repeated:
            self.complaints.append(f"user {user}: {path} was answered {answer}, and then {repeated}")
        return answer

    async def _result(self, user: int, webs: Sequence[Web], request_id: str) -> Any:
        """Ask for the result until there is one; both versions must say the same."""
        path = f"/api/v1/issue-requests/{request_id}"
        deadline = time.monotonic() + _RESULT_SECONDS
        while (answer := await self._call(user, webs, "GET", path))[1].get("status") == "PENDING":
            if time.monotonic() > deadline:
                self.complaints.append(f"request {request_id} of user {user} has no result")
                break
            await asyncio.sleep(_POLL_SECONDS)
        else:
            repeated = await self._call(user, webs[::-1], "GET", path)
            if answer != repeated:
                self.complaints.append(f"user {user}: {path} is {answer}, and then {repeated}")
        return answer[1]

    async def _call(
        self, user: int, webs: Sequence[Web], method: str, path: str, body: Any = None, key: str = ""
    ) -> tuple[int, Any]:
        headers = {"authorization": self._tokens[user]} | ({"idempotency-key": key} if key else {})
        for attempt in count():
            web = webs[attempt % len(webs)]
            try:
                status, raw = await web.connection.exchange(encode_request(method, path, web.port, headers, body))
            except (OSError, EOFError, TimeoutError) as error:
                self.retries[type(error).__name__] += 1
            else:
                answer = json.loads(raw)
                if status < 500 and answer.get("code") != "in_progress":
                    self.served[web.port] += 1
                    return status, answer
                self.retries[f"{status} {answer.get('code')}"] += 1
            await asyncio.sleep(_RETRY_SECONDS)
        raise AssertionError("unreachable")
