"""Clients that ask without end, each one thing after the other, so that a fault of any length meets requests."""

from __future__ import annotations

import asyncio
import json
import secrets
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from uuid import UUID

from coupons.models import Coupon
from couponsite.auth.tokens import issue_access_token
from demo.load_client import Answer, Ask, Connection, encode_request

_CLIENTS = 4
_ANSWER_SECONDS = 180.0


@dataclass(frozen=True, slots=True)
class Span:
    """When a request was first sent and when its 202 had come, by one clock that only counts."""

    asked: int
    answered: int


class Load:
    """Asks from a thread of its own; begins with ``start`` and must be ended with ``finish`` or ``stop``.

    Every second request wants the first coupon, the hot one. Every user asks once, and some click twice.
    """

    def __init__(self, port: int, coupons: Sequence[Coupon], *, at_least: int) -> None:
        """``at_least`` requests are sent, and more until ``finish``."""
        self.asks: list[Ask] = []
        self.answers: list[Answer] = []
        self.spans: dict[UUID, Span] = {}
        # Why requests had to be sent again, see ``Connection.insist``.
        self.retries: Counter[str] = Counter()
        self._port = port
        self._coupons = coupons
        self._at_least = at_least
        self._enough = False
        self._clock = count()
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)

    def start(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread.start()

    def finish(self) -> list[Answer]:
        """Ask no more, wait for the last answer and return all; fails the test when they do not come."""
        self._enough = True
        self._thread.join(_ANSWER_SECONDS)
        assert not self._thread.is_alive(), (
            f"{len(self.answers)} of {len(self.asks)} answered, at least {self._at_least} wanted; {dict(self.retries)}"
        )
        return self.answers

    def stop(self) -> None:
        """End it, whatever is still to be answered."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._task.cancel)
            self._thread.join()

    def _run(self) -> None:
        self._task = self._loop.create_task(self._ask_on())
        try:
            self._loop.run_until_complete(self._task)
        except asyncio.CancelledError:
            pass
        finally:
            self._loop.close()

    async def _ask_on(self) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(_CLIENTS):
                group.create_task(self._be_client())

    async def _be_client(self) -> None:
        connection = Connection(self._port)
        try:
            while not self._enough or len(self.asks) < self._at_least:
                await self._ask(connection, self._next_ask())
        finally:
            connection.close()

    def _next_ask(self) -> Ask:
        number = len(self.asks)
        user_id, coupon = number + 1, self._coupons[0 if number % 2 else number // 2 % len(self._coupons)]
        ask = Ask(secrets.token_hex(16), user_id, coupon.id, coupon.coupon_type, endpoint=number)
        if number % 5 == 4:
            first = self.asks[-1]
            ask = Ask(secrets.token_hex(16), first.user_id, first.coupon_id, first.coupon_type, endpoint=number)
        self.asks.append(ask)
        return ask

    async def _ask(self, connection: Connection, ask: Ask) -> None:
        path, body = ask.target()
        headers = {"authorization": f"Bearer {issue_access_token(ask.user_id)}", "idempotency-key": ask.key}
        message = encode_request("POST", path, self._port, headers, body)
        asked = next(self._clock)
        status, raw, attempts = await connection.insist(message, self.retries)
        answered = next(self._clock)
        request_id = UUID(json.loads(raw)["requestId"]) if status == 202 else None
        if request_id:
            self.spans[request_id] = Span(asked, answered)
        self.answers.append(Answer(ask, status, request_id, attempts, latency=0.0))
