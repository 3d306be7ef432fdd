"""Reading of request bodies in the event loop: limits of size, time and memory, and bodies that end early."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

BODY_SECONDS = 10.0
# For the bodies of a process that are being read or forwarded: those of the API, and those of all other paths, apart.
# Pages of the site, or a site that hangs with their bodies, must not use up the memory of the crowd's requests.
API_BODIES_BYTES = 16 * 1024 * 1024
SITE_BODIES_BYTES = 48 * 1024 * 1024

Receive = Callable[[], Awaitable[dict[str, Any]]]


class BodyError(Exception):
    """The body cannot be read: ``code`` and ``detail`` of the problem for the client."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


class Bodies:
    """Reads bodies; all of them share one limit of memory, and one timer ends those that are late."""

    def __init__(self, memory: int) -> None:
        """``memory``: bytes for all bodies together. A body counts by what has arrived of it."""
        self._free = memory
        self._deadlines: dict[asyncio.Task[Any], float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._closing = False

    async def read(self, receive: Receive, *, length: int | None, limit: int) -> bytes:
        """Return the whole body; ``length`` None: it is chunked. ``release`` its size when it is no longer needed.

        Raises BodyError for a body that is larger than ``limit`` bytes, late, or ends early.
        """
        if length is not None and length > limit:
            raise BodyError("too_large", f"The body is larger than {limit} bytes.")
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task is not None
        self._deadlines[task] = loop.time() + BODY_SECONDS
        if self._timer is None:
            self._timer = loop.call_later(BODY_SECONDS, self._end_late)
        try:
            return await self._whole(receive, length, limit)
        except asyncio.CancelledError:
            if self._closing:
                raise BodyError("unavailable", "The server stops. This request was not executed.") from None
            if self._deadlines.get(task, 0.0) > loop.time():
                raise
            raise BodyError("timeout", f"The body did not arrive within {BODY_SECONDS:g} seconds.") from None
        finally:
            self._deadlines.pop(task, None)

    def release(self, size: int) -> None:
        """Free the memory of a body."""
        self._free += size

    def close(self) -> None:
        """End the reading of all bodies: the server stops."""
        self._closing = True
        for task in self._deadlines:
            task.cancel()

    async def _whole(self, receive: Receive, length: int | None, limit: int) -> bytes:
        chunks: list[bytes] = []
        arrived = 0
        more = True
        try:
            while more:
                message = await receive()
                if message["type"] != "http.request":
                    raise _ended_early(arrived, length)
                chunk: bytes = message.get("body", b"")
                if arrived + len(chunk) > limit:
                    raise BodyError("too_large", f"The body is larger than {limit} bytes.")
                if len(chunk) > self._free:
                    raise BodyError("unavailable", "Too many bodies are being read. This request was not executed.")
                chunks.append(chunk)
                arrived += len(chunk)
                self._free -= len(chunk)
                more = message.get("more_body", False)
            if length is not None and arrived < length:
                raise _ended_early(arrived, length)
        except BaseException:
            self._free += arrived
            raise
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _end_late(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for task, deadline in self._deadlines.items():
            if deadline <= now:
                task.cancel()
        # Deadlines are in the order of their insertion: the next one to come is the first that is not over.
        upcoming = next((deadline for deadline in self._deadlines.values() if deadline > now), None)
        self._timer = None if upcoming is None else loop.call_at(upcoming, self._end_late)


def _ended_early(arrived: int, length: int | None) -> BodyError:
    expected = "" if length is None else f" of {length}"
    return BodyError("invalid", f"The body ended early: {arrived}{expected} bytes arrived.")
