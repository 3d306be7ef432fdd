"""A service outside, on loopback: real HTTP, and as unreliable as it is told to be."""

from __future__ import annotations

import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self


class FlakyServer:
    """Takes POSTs and remembers their bodies by Idempotency-Key; of all calls every ``fails``-th is answered with 500
    and every ``hangs``-th not at all, until the server ends. A call that hangs has had its effect, as the worst kind
    of timeout has.
    """

    def __init__(self, *, fails: int = 0, hangs: int = 0, port: int = 0) -> None:
        # Bodies that were taken, by key: what the receiver of the service would have seen, once per key.
        self.taken: dict[str, set[bytes]] = defaultdict(set)
        self.calls = 0
        self.failed = 0
        self.hung = 0
        self._fails = fails
        self._hangs = hangs
        self._lock = threading.Lock()
        self._ended = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                body = self.rfile.read(length)
                if len(body) < length:
                    # The caller was killed in mid-sentence.
                    self.close_connection = True
                    return
                outer._answer(self, self.headers["Idempotency-Key"], body)

            def log_message(self, format: str, *args: object) -> None:
                """Says nothing."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, request: object, client_address: object) -> None:
                """A client that was killed is part of the test."""

        self._server = Server(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, handler: BaseHTTPRequestHandler, key: str, body: bytes) -> None:
        with self._lock:
            self.calls += 1
            hangs = bool(self._hangs) and self.calls % self._hangs == 0
            fails = bool(self._fails) and self.calls % self._fails == 0
            if hangs or not fails:
                self.taken[key].add(body)
            self.hung += hangs
            self.failed += fails and not hangs
        if hangs:
            self._ended.wait(60)
            handler.close_connection = True
            return
        handler.send_response(500 if fails else 200)
        handler.send_header("Content-Length", "0")
        handler.end_headers()
