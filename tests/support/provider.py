"""A service outside on loopback: it answers as it is told to, and has an effect once per idempotency key."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from common import http_client

HANG = "hang"
HANG_UP = "hang up"
ENDLESS = "endless"
# An answer that comes byte by byte, for ten seconds: of which already the headers, or only the body.
DRIP_HEADERS = "drip headers"
DRIP_BODY = "drip body"

Answer = int | str | tuple[int, dict[str, str]]


class Call(NamedTuple):
    """A call as it came; ``number`` counts from 1, header names are in lower case."""

    number: int
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def key(self) -> str:
        return self.headers["idempotency-key"]


class Quota:
    """An ``answer`` that takes ``limit`` calls a second and throttles the others with ``status`` and ``headers``."""

    def __init__(self, limit: int, headers: Mapping[str, str] = {"Retry-After": "1"}, status: int = 429) -> None:
        self._limit = limit
        self._throttled = (status, dict(headers))
        self._second = float("-inf")
        self._left = 0
        self._lock = threading.Lock()
        # Times of the calls that were not taken, on the monotonic clock.
        self.throttled_at: list[float] = []

    def __call__(self, call: Call) -> Answer:
        now = time.monotonic()
        with self._lock:
            if now - self._second >= 1:
                self._second, self._left = now, self._limit
            if self._left > 0:
                self._left -= 1
                return 200
            self.throttled_at.append(now)
        return self._throttled


class Provider:
    """``answer`` tells for each call a status, a status with headers, or one of the constants above.

    What is answered with 2xx or hangs had its effect: a second call under its key has none.
    """

    def __init__(self) -> None:
        self.answer: Callable[[Call], Answer] = lambda call: 200
        self.calls: list[Call] = []
        self.effects: dict[str, Call] = {}
        self._lock = threading.Lock()
        self.released = threading.Event()
        handler = type("Handler", (_Handler,), {"provider": self})
        self._server = _Server(("127.0.0.1", 0), handler, bind_and_activate=False)
        # Bound and not listening: calls are refused.
        self._server.server_bind()
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/told"

    def up(self) -> None:
        self._server.server_activate()
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="provider")
        self._thread.start()

    def release(self) -> None:
        """Let go of the calls that hang."""
        self.released.set()

    def close(self) -> None:
        self.release()
        if self._thread is not None:
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def tries(self, key: object) -> int:
        with self._lock:
            return sum(call.key == str(key) for call in self.calls)

    def take(self, handler: BaseHTTPRequestHandler) -> Answer:
        length = int(handler.headers["content-length"])
        body = handler.rfile.read(length)
        if len(body) < length:
            # The caller was killed in the middle of a request.
            return HANG_UP
        headers = {name.lower(): value for name, value in handler.headers.items()}
        with self._lock:
            call = Call(len(self.calls) + 1, handler.path, headers, body)
            self.calls.append(call)
        answer = self.answer(call)
        status = answer[0] if isinstance(answer, tuple) else answer
        if isinstance(status, str) or 200 <= status < 300:
            with self._lock:
                self.effects.setdefault(call.key, call)
        if answer == HANG:
            self.released.wait(30)
        return answer


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller killed in the middle of a call is part of the test."""

    # The default is five: more that come at once would have to knock again after a second.
    request_queue_size = 128


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    provider: Provider

    def do_POST(self) -> None:
        answer = self.provider.take(self)
        if answer in (HANG, HANG_UP):
            self.close_connection = True
            return
        if answer in (ENDLESS, DRIP_HEADERS, DRIP_BODY):
            self._answer_without_end(answer)
            return
        status, headers = answer if isinstance(answer, tuple) else (int(answer), {})
        # Else two Date headers: the server's own and the test's.
        (self.send_response_only if "Date" in headers else self.send_response)(status)
        for name, value in {**headers, "content-length": "2"}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"{}")

    def _answer_without_end(self, answer: Answer) -> None:
        self.close_connection = True
        self.send_response(200)
        if answer == DRIP_HEADERS:
            self.flush_headers()
        else:
            self.end_headers()
        try:
            for _ in range(1_000_000 if answer == ENDLESS else 200):
                self.wfile.write(b"x" * (10_000 if answer == ENDLESS else 1))
                if answer != ENDLESS and self.provider.released.wait(0.05):
                    break
        except OSError:
            pass

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the test looks at ``calls``."""


def close_http_client() -> None:
    """Close this process's connections now and not when they are garbage-collected: a later server may get the port."""
    asyncio.run_coroutine_threadsafe(http_client.client().aclose(), http_client.loop()).result(10)
    http_client.client.cache_clear()
