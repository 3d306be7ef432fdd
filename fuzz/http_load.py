"""Sends hostile requests and, at the same time, those of valid users, who must not be affected."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import Counter
from dataclasses import dataclass
from random import Random
from typing import Any
from uuid import UUID

from .findings import Findings
from .http_input import HostileRequest, hostile_request
from .world import World, bearer

_CONNECT_SECONDS = 10.0
# Complete requests must be answered; for others the client waits only half a second.
_ANSWER_SECONDS = 40.0
_PATIENCE_SECONDS = 0.5
_RESULT_SECONDS = 60.0
_TRIES = 120
_MAX_BYTES = 2**21
_STATUS = re.compile(rb"^HTTP/1\.[01] (\d{3})", re.MULTILINE)
_RETRY_AFTER = re.compile(rb"^retry-after: *\d+\r?$", re.MULTILINE | re.IGNORECASE)
_SHOWN = 1500
_SHOWN_BEFORE = 500


@dataclass(frozen=True, slots=True)
class Answer:
    """Status (0: no answer), head as bytes and body."""

    status: int
    head: bytes
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class HttpLoad:
    """Concurrent connections with hostile requests, and concurrent valid users, until a deadline."""

    def __init__(self, port: int, world: World, seed: str, findings: Findings) -> None:
        self.statuses: Counter[int] = Counter()
        # Accepted requests: each must get a result, and those of valid users SUCCESS.
        self.accepted: set[UUID] = set()
        self.accepted_of_valid: set[UUID] = set()
        self.paid: list[int] = []
        self._port = port
        self._world = world
        self._seed = seed
        self._findings = findings
        self._number = 0
        self._deadline = 0.0

    def stop(self) -> None:
        """Start no further request."""
        self._deadline = 0.0

    async def run(self, deadline: float, *, hostile: int, valid: int) -> None:
        """Send until ``deadline`` (time.monotonic) or ``stop``, over ``hostile`` connections and as ``valid`` users."""
        self._deadline = deadline
        async with asyncio.TaskGroup() as group:
            for _ in range(hostile):
                group.create_task(self._send_hostile())
            for _ in range(valid):
                group.create_task(self._act_as_valid_user())

    async def _send_hostile(self) -> None:
        while time.monotonic() < self._deadline:
            self._number += 1
            number = self._number
            request = hostile_request(Random(f"{self._seed}:http:{number}"), self._world)
            shown = f"HTTP {number}: {request.data!r}"
            self._findings.sent(shown[:_SHOWN_BEFORE])
            answer = await self._exchange(request, shown)
            if request.is_cut and 200 <= answer.status < 300:
                self._findings.add(f"HTTP {answer.status} for a body that ended early", shown)
            if request.is_complete and not answer.status:
                self._findings.add("no answer to a whole request", shown)
            self._learn(answer)

    def _learn(self, answer: Answer) -> None:
        """Record ids that the service returned, for use in later requests."""
        try:
            answered = answer.json() if answer.status in (201, 202) else None
        except ValueError:
            return
        if answer.status == 202 and isinstance(answered, dict) and "requestId" in answered:
            request_id = UUID(answered["requestId"])
            self.accepted.add(request_id)
            self._world.request_ids.append(request_id)
        if answer.status == 201 and isinstance(answered, dict) and "orderId" in answered:
            self._world.order_ids.append(answered["orderId"])

    async def _exchange(self, request: HostileRequest, shown: str) -> Answer:
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        except (OSError, TimeoutError) as error:
            self._findings.add(f"no connection: {type(error).__name__}", shown)
            return Answer(0, b"", b"")
        data = b""
        try:
            # OSError is expected: the server may answer and close before it has read everything.
            async with asyncio.timeout(_ANSWER_SECONDS if request.is_complete else _PATIENCE_SECONDS):
                writer.write(request.data)
                await writer.drain()
                if not request.is_complete:
                    writer.write_eof()
                while len(data) < _MAX_BYTES and (part := await reader.read(65_536)):
                    data += part
        except (OSError, TimeoutError):
            pass
        finally:
            writer.close()
        return self._judged(data, shown)

    def _judged(self, data: bytes, shown: str) -> Answer:
        head, _, body = data.partition(b"\r\n\r\n")
        statuses = [int(status) for status in _STATUS.findall(data)]
        self.statuses.update(statuses or [0])
        for status in statuses:
            if status >= 500 and not (status == 503 and _RETRY_AFTER.search(head)):
                self._findings.add(f"HTTP {status}", f"{shown}\n{data[:_SHOWN]!r}")
        if b"Traceback (most recent call last)" in body:
            self._findings.add("a traceback in an answer", f"{shown}\n{data[:_SHOWN]!r}")
        return Answer(statuses[0] if statuses else 0, head, body)

    # Valid users

    async def _act_as_valid_user(self) -> None:
        while time.monotonic() < self._deadline:
            user_id = self._world.new_user()
            try:
                await self._shop(user_id, Random(f"{self._seed}:user:{user_id}"))
            except UnexpectedAnswerError as error:
                self._findings.add(f"a valid user was answered {error}", f"user {user_id}", with_recent=True)

    async def _shop(self, user_id: int, random: Random) -> None:
        """Request a coupon, order with it, and mostly pay and sometimes cancel the order."""
        coupon = random.choice(self._world.plenty)
        accepted = await self._insist("POST", f"/api/v1/coupons/{coupon.pk}/issue-async", user_id, {}, 202)
        request_id = UUID(accepted["requestId"])
        self.accepted.add(request_id)
        self.accepted_of_valid.add(request_id)
        self._world.request_ids.append(request_id)
        user_coupon_id = await self._result(request_id, user_id)
        items = [{"productId": random.choice(self._world.products).pk, "quantity": 1}]
        body: dict[str, Any] = {"items": items}
        if user_coupon_id is not None and random.random() < 0.5:
            body["userCouponId"] = user_coupon_id
        order = await self._insist("POST", "/api/v1/orders", user_id, body, 201)
        path = f"/api/v1/orders/{order['orderId']}"
        if random.random() < 0.8:
            await self._insist("POST", f"{path}/pay", user_id, {}, 200)
            self.paid.append(order["orderId"])
        if random.random() < 0.2:
            await self._insist("POST", f"{path}/cancel", user_id, {}, 200)
        await self._insist("GET", path, user_id, None, 200)
        await self._insist("GET", f"/api/v1/users/{user_id}/coupons", user_id, None, 200)

    async def _result(self, request_id: UUID, user_id: int) -> int | None:
        """Return the id of the issued coupon, or None after 60 s; the end of the run checks for missing results."""
        until = time.monotonic() + _RESULT_SECONDS
        while time.monotonic() < until:
            answered = await self._insist("GET", f"/api/v1/issue-requests/{request_id}", user_id, None, 200)
            if answered["status"] == "SUCCESS":
                self._world.user_coupon_ids.append(answered["userCouponId"])
                return int(answered["userCouponId"])
            if answered["status"] != "PENDING":
                raise UnexpectedAnswerError(f"{answered['status']} {answered['reason']}")
            await asyncio.sleep(0.3)
        return None

    async def _insist(self, method: str, path: str, user_id: int, body: Any, wanted: int) -> Any:
        """Return the JSON of the answer with status ``wanted``; retries after 503 and 409 ``in_progress``."""
        content = b"" if body is None else json.dumps(body).encode()
        head = (
            f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\ncontent-type: application/json\r\n"
            f"content-length: {len(content)}\r\nidempotency-key: {path}:{user_id}\r\nauthorization: "
        )
        request = HostileRequest(head.encode() + bearer(user_id) + b"\r\n\r\n" + content, False, True)
        for _ in range(_TRIES):
            answer = await self._exchange(request, f"valid {request.data!r}")
            if answer.status == wanted:
                return answer.json()
            if answer.status != 503 and b'"in_progress"' not in answer.body:
                break
            await asyncio.sleep(0.5)
        raise UnexpectedAnswerError(f"{answer.status} to {method} {_kind(path)}: {answer.body[:300]!r}")


class UnexpectedAnswerError(Exception):
    """A valid request got an answer that the contract does not allow."""


def _kind(path: str) -> str:
    return re.sub(r"[0-9a-f-]{36}|\d{2,}|(?<=/)\d", "N", path)
