"""The client of a story: calls the service over HTTP as a user."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from demo.load_client import Connection, encode_request
from demo.sale import bearer_tokens

_SECONDS = 60.0


class Call(NamedTuple):
    """A POST of a user. ``body`` None sends no body."""

    user_id: int
    path: str
    body: Mapping[str, Any] | None = None


class Reply(NamedTuple):
    """The answer to a call. ``text`` is its body as it came, ``body`` the JSON object in it."""

    status: int
    body: dict[str, Any]
    text: str

    @property
    def request_id(self) -> UUID:
        """The request id of a 202. Raises KeyError for another answer."""
        return UUID(self.body["requestId"])


class StoryClient:
    """Calls the web process on a port, each user with a token, and repeats a call that is answered 5xx."""

    def __init__(self, port: int) -> None:
        self._port = port

    def post(self, user_id: int, path: str, body: Mapping[str, Any] | None = None) -> Reply:
        """Send one POST and return its answer. Raises TimeoutError without one within 60 s."""
        return self.post_together([Call(user_id, path, body)])[0]

    def post_together(self, calls: Sequence[Call]) -> list[Reply]:
        """Send the calls at once, each on a connection of its own; return the answers in their order."""

        async def send() -> list[Reply]:
            async with asyncio.timeout(_SECONDS):
                return await asyncio.gather(*(self._send("POST", *call) for call in calls))

        return asyncio.run(send())

    def get(self, user_id: int, path: str) -> Reply:
        """Send one GET and return its answer."""
        return asyncio.run(self._send("GET", user_id, path, None))

    async def _send(self, method: str, user_id: int, path: str, body: Mapping[str, Any] | None) -> Reply:
        headers = {"authorization": bearer_tokens([user_id])[user_id], "idempotency-key": secrets.token_hex(16)}
        connection = Connection(self._port)
        try:
            message = encode_request(method, path, self._port, headers, body)
            status, raw, _ = await connection.insist(message, Counter())
        finally:
            connection.close()
        return Reply(status, json.loads(raw), raw.decode())
