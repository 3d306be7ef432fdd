"""The outside world of a story: a real HTTP server on loopback that gets the calls of the service."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from demo.stories.topics import OBSERVE_SECONDS
from devstack import wait_until


class ReceivedCall(NamedTuple):
    """A call of the service: path, idempotency key, body, and the status that it was answered."""

    path: str
    key: str
    body: str
    status: int


class Receiver:
    """Answers every POST with 200, or with what ``answers`` says for its path, and keeps the calls.

    Use it as a context manager.
    """

    def __init__(self) -> None:
        self.calls: list[ReceivedCall] = []
        # Status by path, 200 unless it is here.
        self.answers: dict[str, int] = {}
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"])).decode()
                status = receiver.answers.get(self.path, 200)
                receiver.calls.append(ReceivedCall(self.path, self.headers["idempotency-key"] or "", body, status))
                self.send_response(status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Print nothing: the story says what came."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="receiver")

    def __enter__(self) -> Receiver:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def url(self, path: str) -> str:
        """Return the address of a path of this server."""
        return f"http://127.0.0.1:{self._server.server_address[1]}{path}"

    def to(self, path: str, key: str | None = None) -> list[ReceivedCall]:
        """Return the calls to a path so far, with ``key`` only those under this idempotency key."""
        return [call for call in list(self.calls) if call.path == path and key in (None, call.key)]

    def wait_for(self, path: str, wanted: Callable[[ReceivedCall], bool], what: str) -> ReceivedCall:
        """Wait for a call to ``path`` for which ``wanted`` is true and return it. Raises TimeoutError after 90 s."""

        def found() -> list[ReceivedCall]:
            return [call for call in self.to(path) if wanted(call)]

        wait_until(found, OBSERVE_SECONDS, f"{what} was not posted to {path}")
        return found()[0]
