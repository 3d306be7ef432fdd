"""A load client that requests coupons over HTTP and retries under the same Idempotency-Key until it has an answer."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

_ATTEMPT_SECONDS = 10.0
_LONGEST_PAUSE = 0.5
_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Ask:
    """One coupon request of one user. ``endpoint`` is a number that selects one of the equivalent endpoints."""

    key: str
    user_id: int
    coupon_id: int
    coupon_type: str
    endpoint: int

    def target(self) -> tuple[str, dict[str, str]]:
        """Return path and JSON body: one of the contract's three endpoints, or of the two older ones from the seeds."""
        by_type = {"couponType": self.coupon_type}
        endpoints: tuple[tuple[str, dict[str, str]], ...] = (
            ("/api/v1/coupons/issue-async", by_type),
            (f"/api/v1/coupons/{self.coupon_id}/issue-async", {}),
            (f"/api/v1/users/{self.user_id}/coupons/{self.coupon_id}/issue", {}),
            ("/coupons/issue-async", by_type),
            (f"/coupons/{self.coupon_id}/issue-async", {}),
        )
        return endpoints[self.endpoint % len(endpoints)]


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to an ask. ``request_id`` is set for a 202; ``latency`` in seconds, from the first attempt on."""

    ask: Ask
    status: int
    request_id: UUID | None
    attempts: int
    latency: float


class Crowd:
    """Sends asks over ``connections`` keep-alive connections, with at most one ask in flight on each.

    Writes HTTP directly on asyncio streams: a client library takes several times the CPU time per request, which the
    service lacks when both share two cores.
    """

    def __init__(
        self,
        port: int,
        tokens: Mapping[int, str],
        *,
        connections: int = 32,
        on_answer: Callable[[int], None] = lambda answers: None,
    ) -> None:
        """``tokens`` holds the Authorization header of every user; ``on_answer`` gets the number of answers so far."""
        self.answers: list[Answer] = []
        # Retried attempts by reason: status, ``in_progress`` or error name.
        self.retries: Counter[str] = Counter()
        self._port = port
        self._tokens = tokens
        self._connections = connections
        self._on_answer = on_answer

    async def ask_all(self, asks: Sequence[Ask]) -> None:
        """Send every ask until it has an answer. Retries without limit: cancel the task to stop it."""
        remaining = iter(asks)
        async with asyncio.TaskGroup() as group:
            for _ in range(min(self._connections, len(asks))):
                group.create_task(self._send_remaining(remaining))

    async def _send_remaining(self, remaining: Iterator[Ask]) -> None:
        connection = Connection(self._port)
        try:
            for ask in remaining:
                answer = await self._ask(connection, ask)
                self.answers.append(answer)
                self._on_answer(len(self.answers))
        finally:
            connection.close()

    async def _ask(self, connection: Connection, ask: Ask) -> Answer:
        path, body = ask.target()
        message = encode_request(
            "POST", path, self._port, {"authorization": self._tokens[ask.user_id], "idempotency-key": ask.key}, body
        )
        started = time.perf_counter()
        status, raw, attempts = await connection.insist(message, self.retries)
        request_id = UUID(json.loads(raw)["requestId"]) if status == 202 else None
        return Answer(ask, status, request_id, attempts, time.perf_counter() - started)


class Connection:
    """One HTTP/1.1 connection to this machine, opened when needed and reopened after a failure."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def insist(self, message: bytes, failures: Counter[str]) -> tuple[int, bytes, int]:
        """Send a request until it has a final answer: neither 5xx nor 409 ``in_progress``.

        Returns status, body and the number of attempts. ``failures`` counts the other attempts by reason: the 5xx
        status, ``in_progress`` or the name of the connection error.
        """
        for attempt in itertools.count(1):
            try:
                status, body = await self.exchange(message)
            except (OSError, EOFError, TimeoutError) as error:
                failures[type(error).__name__] += 1
            else:
                in_progress = status == 409 and b'"in_progress"' in body
                if status < 500 and not in_progress:
                    return status, body, attempt
                failures["in_progress" if in_progress else str(status)] += 1
            await asyncio.sleep(min(0.02 * 2 ** min(attempt, 10), _LONGEST_PAUSE))
        raise AssertionError("unreachable")

    async def exchange(self, message: bytes) -> tuple[int, bytes]:
        """Send a request once and return status and body of the answer.

        Raises OSError, EOFError or TimeoutError; it is then unknown whether the request had its effect.
        """
        try:
            async with asyncio.timeout(_ATTEMPT_SECONDS):
                return await self._exchange(message)
        except BaseException:
            self.close()
            raise

    async def _exchange(self, message: bytes) -> tuple[int, bytes]:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.write(message)
        head = await reader.readuntil(b"\r\n\r\n")
        length = _CONTENT_LENGTH.search(head)
        if length is None:
            raise ConnectionError(f"answer without Content-Length: {head!r}")
        body = await reader.readexactly(int(length[1]))
        if b"\r\nconnection: close\r\n" in head.lower():
            self.close()
        return int(head[9:12]), body

    def close(self) -> None:
        """Close the connection; the next exchange opens a new one."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


def encode_request(
    method: str, path: str, port: int, headers: Mapping[str, str], body: Mapping[str, Any] | None = None
) -> bytes:
    """Return the bytes of an HTTP/1.1 request with a JSON body; ``body`` None sends no body."""
    content = b"" if body is None else json.dumps(body).encode()
    lines = [
        f"{method} {path} HTTP/1.1",
        f"host: 127.0.0.1:{port}",
        "content-type: application/json",
        f"content-length: {len(content)}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + content
