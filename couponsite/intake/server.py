"""The ASGI application of the intake: reads each request whole, answers it in the lane or forwards it to the site."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.http.request import split_domain_port, validate_host
from django.http.response import HttpResponseBase
from django.middleware.security import SecurityMiddleware

from common.api.errors import DomainError, Unavailable
from common.api.lane import Endpoint, Headers, LaneRequest, LaneResponse, lane_refusal, lane_response
from common.api.problems import failure_response
from common.api.requests import is_idempotency_key
from common.processes.log_limit import LogLimit
from common.processes.worker_threads import on_live_connections
from common.trace_context import read_traceparent
from coupons.api.lane import CouponLane
from couponsite.auth.tokens import ISSUE_FOR_OTHERS
from couponsite.error_pages import is_api_path, refusal
from couponsite.health import PROBES, answer_probes, live
from couponsite.middleware import LOOPBACK, body_limit, content_length

from .bodies import API_BODIES_BYTES, SITE_BODIES_BYTES, Bodies, BodyError
from .client_address import HEADER
from .forwarding import Send, Site, SiteUnavailable
from .loop_load import LoopLoad
from .token_cache import TokenCache

logger = logging.getLogger(__name__)

_log_limit = LogLimit()

# Threads with a connection to PostgreSQL each: groups of coupons that wait for a row lock occupy one each.
SELECTIVE_THREADS = 4
READ_THREADS = 2

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]

# Headers that the lane reads. With one of them twice the site decides what the request means.
_READ = frozenset(
    (
        b"host",
        b"authorization",
        b"content-type",
        b"content-length",
        b"content-encoding",
        b"transfer-encoding",
        b"idempotency-key",
        b"traceparent",
        b"x-forwarded-proto",
    )
)
_JSON_TYPES = frozenset((b"application/json", b"application/json; charset=utf-8", b"application/json;charset=utf-8"))
_MOST_HOSTS = 1000
_TICK_SECONDS = 1.0
_OVERLOADED = Unavailable("Too many requests are in progress. This request was not executed.", retry_after=1)


class Intake:
    """The application; one per process."""

    def __init__(self, *, tick: Callable[[], None] = lambda: None) -> None:
        """``tick`` is called once a second by the event loop, see ``heartbeat``."""
        self._tick = tick
        self._queue = ThreadPoolExecutor(1, "queue")
        self._selective = ThreadPoolExecutor(SELECTIVE_THREADS, "selective")
        self._reads = ThreadPoolExecutor(READ_THREADS, "reads")
        self._probes = ThreadPoolExecutor(1, "probes")
        self._coupons = CouponLane(queue=self._queue, selective=self._selective, reads=self._reads)
        self._api_bodies = Bodies(API_BODIES_BYTES)
        self._site_bodies = Bodies(SITE_BODIES_BYTES)
        self._site = Site(socket=settings.SITE_SOCKET, url=settings.SITE_URL)
        self._hosts: dict[tuple[bytes, bool], bool] = {}
        self._answer_probe = answer_probes(lambda request: HttpResponse(status=404))
        self._answer_probes = on_live_connections(self._answer_each)
        self._tokens = TokenCache()
        self._load = LoopLoad()
        self._behind_proxy = bool(settings.TRUSTED_PROXY_COUNT)
        self._security_headers = {secure: _security_headers(secure=secure) for secure in (False, True)}
        frame_options = (b"x-frame-options", settings.X_FRAME_OPTIONS.encode())
        self._lane_headers = {
            (method, secure): [(b"allow", allow), frame_options, *security_headers]
            for method, allow in (("POST", b"POST"), ("GET", b"GET, HEAD"))
            for secure, security_headers in self._security_headers.items()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            if scope["path"] in PROBES:
                await _respond(send, await self._probe(scope), with_body=scope["method"] != "HEAD")
            elif (taken := self._load.take()) is None:
                await self._refuse_overload(scope, send)
            else:
                try:
                    await self._handle(scope, receive, send)
                finally:
                    self._load.release(taken)

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self._site.open()
                self._tick_each_second()
                # The server waits for requests in progress, and would wait for bodies that never come. It takes SIGINT
                # for SIGTERM, and has only one handler for each.
                asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._stop)
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await self._site.close()
                await send({"type": "lifespan.shutdown.complete"})
                return

    def _tick_each_second(self) -> None:
        self._tick()
        asyncio.get_running_loop().call_later(_TICK_SECONDS, self._tick_each_second)

    def _stop(self) -> None:
        self._api_bodies.close()
        self._site_bodies.close()
        os.kill(os.getpid(), signal.SIGINT)

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        read: dict[bytes, bytes] = {}
        is_plain = True
        for name, value in scope["headers"]:
            if name in _READ:
                is_plain = is_plain and name not in read
                read[name] = value
        bodies = self._api_bodies if is_api_path(scope["path"]) else self._site_bodies
        body = b""
        if b"content-length" in read or b"transfer-encoding" in read:
            try:
                body = await bodies.read(receive, length=_announced_length(read), limit=body_limit(scope["path"]))
            except BodyError as error:
                # The rest of the body may still come: the connection cannot be used again.
                await self._refuse(scope, send, read, error.code, error.detail, headers={"Connection": "close"})
                return
        try:
            response = await self._answer(scope, read, body) if is_plain else None
            if response is not None:
                await _respond(send, response)
            else:
                await self._forward(scope, read, body, send)
        finally:
            bodies.release(len(body))

    async def _answer(self, scope: Scope, read: dict[bytes, bytes], body: bytes) -> LaneResponse | None:
        """Answer in the lane; None if the request is not in the plain form."""
        secure = self._is_secure(read)
        endpoint = self._coupons.find(scope["method"], scope["path"])
        if endpoint is None or not self._is_plain(scope, read, body, secure):
            return None
        request = self._lane_request(scope, read, body)
        response = None if request is None else await _call(endpoint, request)
        if response is not None:
            response.headers.extend(self._lane_headers[scope["method"], secure])
        return response

    def _is_plain(self, scope: Scope, read: dict[bytes, bytes], body: bytes, secure: bool) -> bool:
        """Whether the lane can answer, as far as the address, the host and the form of the body tell."""
        if scope["query_string"] or b"%" in scope["raw_path"] or b"content-encoding" in read:
            return False
        if body and (scope["method"] == "GET" or read.get(b"content-type", b"").lower() not in _JSON_TYPES):
            return False
        return self._is_allowed(read.get(b"host", b""), secure)

    def _lane_request(self, scope: Scope, read: dict[bytes, bytes], body: bytes) -> LaneRequest | None:
        claims = self._tokens.claims(read.get(b"authorization", b""))
        if claims is None:
            return None
        idempotency_key = None
        if (key := read.get(b"idempotency-key")) is not None:
            idempotency_key = key.decode("latin-1")
            if not is_idempotency_key(idempotency_key):
                return None
        traceparent = read.get(b"traceparent")
        return LaneRequest(
            scope["path"],
            claims.user_id,
            ISSUE_FOR_OTHERS in claims.scopes,
            body,
            idempotency_key,
            "" if traceparent is None else read_traceparent(traceparent.decode("latin-1")),
        )

    def _is_secure(self, read: dict[bytes, bytes]) -> bool:
        """Whether the client speaks https with the trusted proxy."""
        return self._behind_proxy and read.get(b"x-forwarded-proto") == b"https"

    def _is_allowed(self, host: bytes, secure: bool) -> bool:
        """Whether the lane serves this Host: it is allowed, and not redirected to https."""
        served = self._hosts.get((host, secure))
        if served is None:
            domain = split_domain_port(host.decode("latin-1").lower())[0]
            allowed = settings.ALLOWED_HOSTS or (["localhost", "127.0.0.1", "[::1]"] if settings.DEBUG else [])
            redirected = settings.HTTPS_REDIRECT and not secure and domain not in LOOPBACK
            served = bool(domain) and validate_host(domain, allowed) and not redirected
            if len(self._hosts) >= _MOST_HOSTS:
                self._hosts.clear()
            self._hosts[host, secure] = served
        return served

    async def _probe(self, scope: Scope) -> LaneResponse:
        request = django_request(scope)
        if PROBES[request.path] is live:
            response = self._answer_probe(request)
        else:
            loop = asyncio.get_running_loop()
            [response] = await loop.run_in_executor(self._probes, self._answer_probes, [request])
        assert isinstance(response, HttpResponse)
        return lane_response(response)

    def _answer_each(self, requests: Sequence[HttpRequest]) -> list[HttpResponseBase]:
        return [self._answer_probe(request) for request in requests]

    async def _forward(self, scope: Scope, read: dict[bytes, bytes], body: bytes, send: Send) -> None:
        if not scope["raw_path"].startswith(b"/"):
            # ``OPTIONS *``, which concerns the server and no address of it.
            await self._refuse(scope, send, read, "not_found", "There is nothing at this address.")
            return
        headers: Headers = [header for header in scope["headers"] if b"_" not in header[0] and header[0] != HEADER]
        try:
            await self._site.forward(scope, headers, body, send)
        except SiteUnavailable as error:
            if count := _log_limit.due("site"):
                logger.warning("the site did not answer %d requests since the last line: %s", count, error)
            detail = (
                "The service did not answer in time: the request may have been executed."
                if error.may_be_executed
                else "The service is unavailable for a moment. The request was not executed."
            )
            await self._refuse(scope, send, read, "unavailable", detail)

    async def _refuse_overload(self, scope: Scope, send: Send) -> None:
        """Refuse before any work, at a sixth of the CPU of an accepted request: not even the headers are read."""
        path = scope["path"]
        self._coupons.count_overload(scope["method"], path)
        if count := _log_limit.due("overload"):
            logger.warning("the event loop is overloaded: 503 for %d requests since the last line", count)
        response = lane_refusal(path, _OVERLOADED) if is_api_path(path) else self._overload_page
        await _respond(send, response._replace(headers=[*response.headers, *self._security_headers[False]]))

    @cached_property
    def _overload_page(self) -> LaneResponse:
        request = django_request({"method": "GET", "path": "/"})
        return lane_response(refusal(request, _OVERLOADED.code, _OVERLOADED.detail, headers={"Retry-After": "1"}))

    async def _refuse(
        self,
        scope: Scope,
        send: Send,
        read: dict[bytes, bytes],
        code: str,
        detail: str,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        retry = {"Retry-After": "1"} if code == "unavailable" else {}
        response = lane_response(refusal(django_request(scope), code, detail, headers={**(headers or {}), **retry}))
        response.headers.extend(self._security_headers[self._is_secure(read)])
        await _respond(send, response)


async def _call(endpoint: Endpoint, request: LaneRequest) -> LaneResponse | None:
    """Call an endpoint; its errors become problems, as those of a view do."""
    try:
        return await endpoint(request)
    except DomainError as error:
        return lane_refusal(request.path, error)
    except Exception as error:
        return lane_response(failure_response(request, error))


def _announced_length(read: dict[bytes, bytes]) -> int | None:
    """Return the size of the body, None if it is chunked. Raises BodyError for headers that say neither."""
    if (coding := read.get(b"transfer-encoding")) is not None:
        if coding.strip().lower() != b"chunked":
            raise BodyError("unsupported_media_type", "The body is encoded: send it without a transfer coding.")
        return None
    length = content_length(read[b"content-length"].decode("latin-1"))
    if length is None:
        raise BodyError("invalid", "Content-Length is not a number of bytes.")
    return length


def django_request(scope: Scope) -> HttpRequest:
    """Return a request of Django with method and path only, for error pages and probes."""
    request = HttpRequest()
    request.method = scope["method"]
    request.path = request.path_info = scope["path"]
    return request


def _security_headers(*, secure: bool) -> Headers:
    """Return what Django's SecurityMiddleware adds to every response of the site."""
    request = HttpRequest()
    request.META["SERVER_NAME"] = "localhost"
    if secure:
        request.META["HTTP_X_FORWARDED_PROTO"] = "https"
    response = HttpResponse()
    del response["Content-Type"]
    SecurityMiddleware(lambda _: response).process_response(request, response)
    return lane_response(response).headers


async def _respond(send: Send, response: LaneResponse, *, with_body: bool = True) -> None:
    headers = [*response.headers, (b"content-length", b"%d" % len(response.body))]
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": response.body if with_body else b""})
