"""The HTTP client of this process: POST requests, each with one limit of time, in the thread of one event loop."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Mapping
from functools import cache

import httpx2

# httpx2 logs a line per call with the full URL, which may contain a secret.
logging.getLogger("httpx2").setLevel(logging.WARNING)

# Bodies are not used, but a connection is reused only after its response was read to the end. Longer ones are cut off.
_BODY_BYTES = 64 * 1024


class NoAnswer(Exception):
    """An HTTP service did not answer a call: its effect is unknown. The message says why, without URL and headers."""


class CannotBeCalled(Exception):
    """An HTTP call cannot be made with this URL or these headers. The message does not repeat them."""


async def post(url: str, body: bytes, headers: Mapping[str, str], seconds: float) -> httpx2.Response:
    """POST ``body``, within ``seconds`` for the whole call; returns the response, its body read away.

    Runs in the event loop of ``loop``. Raises NoAnswer if no status came in time, CannotBeCalled.
    """
    response = None
    try:
        # Limits the whole call: httpx2's read timeout restarts with every byte of a slow response.
        async with (
            asyncio.timeout(seconds),
            client().stream("POST", url, content=body, headers=dict(headers)) as response,
        ):
            await _read_body(response)
    # Only the class name is kept: some messages quote headers, which hold API keys.
    except (TimeoutError, httpx2.TransportError) as error:
        # Once the status has arrived the body does not matter.
        if response is None:
            raise NoAnswer(_describe(error, seconds)) from None
    except (httpx2.InvalidURL, UnicodeError) as error:
        raise CannotBeCalled(f"cannot be called ({type(error).__name__})") from None
    assert response is not None
    return response


def post_and_wait(url: str, body: bytes, headers: Mapping[str, str], seconds: float) -> httpx2.Response:
    """Call ``post`` from any other thread and wait for it."""
    return asyncio.run_coroutine_threadsafe(post(url, body, headers, seconds), loop()).result()


_creation_lock = threading.Lock()


def loop() -> asyncio.AbstractEventLoop:
    """Return the event loop of all calls, in a thread started at the first call: a thread does not survive a fork."""
    # Without the lock two threads could each create a loop.
    with _creation_lock:
        return _create_loop()


@cache
def _create_loop() -> asyncio.AbstractEventLoop:
    created = asyncio.new_event_loop()
    threading.Thread(target=created.run_forever, name="http-calls", daemon=True).start()
    return created


@cache
def client() -> httpx2.AsyncClient:
    """Return the HTTP client of all calls; used only inside the event loop."""
    return httpx2.AsyncClient(timeout=None)


def _describe(error: Exception, seconds: float) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {seconds:g} s"
    return f"no connection ({type(error).__name__})"


async def _read_body(response: httpx2.Response) -> None:
    read = 0
    async for chunk in response.aiter_raw():
        read += len(chunk)
        if read > _BODY_BYTES:
            break
