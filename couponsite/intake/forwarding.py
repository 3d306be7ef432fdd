"""Forwarding to the site: requests that the lane does not answer go there unchanged, and its responses come back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote

import aiohttp
from yarl import URL

from common.api.lane import Headers

from .client_address import HEADER, signature

CONNECTIONS = 256
_CONNECT_SECONDS = 2.0
# Longer than the site takes for any request: it answers 503 before.
_ANSWER_SECONDS = 60.0
# Shorter than the site keeps an idle connection open.
_KEEP_ALIVE_SECONDS = 15.0

# RFC 9110, 7.6.1. The body is forwarded whole, with its length.
_HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade")
)
_NOT_FORWARDED = _HOP_BY_HOP | {b"content-length", b"expect"}
# The intake's server writes these.
_NOT_RETURNED = _HOP_BY_HOP | {b"server", b"date"}

Send = Callable[[dict[str, Any]], Awaitable[None]]


class SiteUnavailable(Exception):
    """The site did not answer. ``may_be_executed``: the request had reached it."""

    def __init__(self, error: BaseException, *, may_be_executed: bool) -> None:
        super().__init__(f"{type(error).__name__}: {error}")
        self.may_be_executed = may_be_executed


class Site:
    """The client of the site, at a unix socket or a URL. Used in the event loop that calls ``open``."""

    def __init__(self, *, socket: str, url: str) -> None:
        """``url``: scheme, host and port; if it is empty, ``socket`` is the path of the unix socket."""
        self._socket = socket
        self._url = url.rstrip("/")
        self._signature = signature()
        self._session: aiohttp.ClientSession | None = None

    def open(self) -> None:
        """Prepare the client; connections are opened when needed."""
        options: dict[str, Any] = {"limit": CONNECTIONS, "keepalive_timeout": _KEEP_ALIVE_SECONDS}
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(**options)
            if self._url
            else aiohttp.UnixConnector(path=self._socket, **options),
            timeout=aiohttp.ClientTimeout(
                total=None, connect=_CONNECT_SECONDS, sock_connect=_CONNECT_SECONDS, sock_read=_ANSWER_SECONDS
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        )

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def forward(self, scope: dict[str, Any], headers: Headers, body: bytes, send: Send) -> None:
        """Send the request to the site, and its response to the client. Raises SiteUnavailable if there is none."""
        assert self._session is not None, "open() comes first"
        client = scope.get("client") or ("",)
        address = (HEADER, f"{self._signature} {client[0]}".encode())
        try:
            response = await self._session.request(
                scope["method"],
                URL(f"{self._url or 'http://site'}{_target(scope)}", encoded=True),
                headers=_forwarded([*headers, address]),
                data=body or None,
                allow_redirects=False,
            )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise SiteUnavailable(error, may_be_executed=False) from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise SiteUnavailable(error, may_be_executed=True) from error
        async with response:
            returned = [
                (name.lower(), value) for name, value in response.raw_headers if name.lower() not in _NOT_RETURNED
            ]
            await send({"type": "http.response.start", "status": response.status, "headers": returned})
            async for chunk in response.content.iter_any():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})


def _target(scope: dict[str, Any]) -> str:
    """Return path and query as they came; bytes that would end the path or are no ASCII are percent-encoded."""
    target: bytes = scope["raw_path"]
    if scope["query_string"]:
        target += b"?" + scope["query_string"]
    return quote(target, safe="%/?:@!$&'()*+,;=-._~[]|\\^`{}\"<>")


def _forwarded(headers: Headers) -> list[tuple[str, str]]:
    forwarded = []
    for name, value in headers:
        if name == b"cookie" and not value.isascii():
            # The site's server drops a header that is not ASCII, and with it the session's cookie.
            value = b";".join(cookie for cookie in value.split(b";") if cookie.isascii())
        if name not in _NOT_FORWARDED:
            forwarded.append((name.decode("latin-1"), value.decode("latin-1")))
    return forwarded
