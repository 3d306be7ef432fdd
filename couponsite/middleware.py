"""Middleware: redirects to https, checks of the body, and Django middleware that API calls with a token skip."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from django.conf import settings
from django.contrib.auth import middleware as auth
from django.contrib.messages import middleware as messages
from django.contrib.sessions import middleware as sessions
from django.http import HttpRequest, HttpResponsePermanentRedirect, UnreadablePostError
from django.http.request import split_domain_port
from django.http.response import HttpResponseBase
from django.utils.deprecation import MiddlewareMixin
from whitenoise.middleware import WhiteNoiseMiddleware  # type: ignore[import-untyped]

from couponsite.error_pages import is_api_path, refusal

GetResponse = Callable[[HttpRequest], HttpResponseBase]

LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})


def https_outside_loopback(get_response: GetResponse) -> GetResponse:
    """Redirect plain http to https if ``HTTPS_REDIRECT`` is on, except on loopback.

    A client that forges the Host header only loses its own redirect. On loopback the Secure flag is removed from
    cookies: with it, browsers would not send the session cookie over http.
    """

    def middleware(request: HttpRequest) -> HttpResponseBase:
        if request.is_secure():
            return get_response(request)
        on_loopback = split_domain_port(request.META.get("HTTP_HOST", "").lower())[0] in LOOPBACK
        if settings.HTTPS_REDIRECT and not on_loopback:
            return HttpResponsePermanentRedirect(f"https://{request.get_host()}{request.get_full_path()}")
        response = get_response(request)
        if on_loopback:
            for cookie in response.cookies.values():
                cookie["secure"] = ""
        return response

    return middleware


def check_body(get_response: GetResponse) -> GetResponse:
    """Refuse bodies that are too large (413), encoded (415) or truncated (400), on every path.

    To WSGI a broken connection looks like the end of the body, and an empty body counts as ``{}``: only the comparison
    with Content-Length prevents a broken connection from paying an order. A chunked body has no length to compare
    with, and the server hides a truncation.
    """

    def middleware(request: HttpRequest) -> HttpResponseBase:
        limit = body_limit(request.path_info)
        length = content_length(request.META.get("CONTENT_LENGTH") or "0")
        if length is None:
            return refusal(request, "invalid", "Content-Length is not a number of bytes.")
        if length > limit:
            return refusal(request, "too_large", f"The body is larger than {limit} bytes.")
        if not request.META.get("CONTENT_LENGTH") and "HTTP_TRANSFER_ENCODING" in request.META:
            return refusal(request, "invalid", "The body has no Content-Length.")
        if length and request.method not in ("GET", "HEAD") and _is_encoded(request):
            return refusal(
                request,
                "unsupported_media_type",
                "The body is encoded: send it without Content-Encoding.",
                headers={"Accept-Encoding": "identity"},
            )
        if (arrived := _received_bytes(request)) < length:
            return refusal(request, "invalid", f"The body ended early: {arrived} of {length} bytes arrived.")
        return get_response(request)

    return middleware


def body_limit(path: str) -> int:
    """Return the most bytes that a body may have on ``path``."""
    return int(settings.API_MAX_BODY_BYTES if is_api_path(path) else settings.DATA_UPLOAD_MAX_MEMORY_SIZE)


def content_length(text: str) -> int | None:
    """Return the number of bytes that a Content-Length header announces; None if it is not a number."""
    if not (text.isascii() and text.isdigit()):
        return None
    # 19 digits exceed any body; int() raises on thousands of digits.
    return int(text.lstrip("0")[:19] or "0")


def _received_bytes(request: HttpRequest) -> int:
    """Return the number of bytes of the body that arrived."""
    try:
        return len(request.body)
    except UnreadablePostError:
        return 0


def _is_encoded(request: HttpRequest) -> bool:
    """Whether the body has a content coding or a transfer coding other than ``identity`` and ``chunked``."""
    named = f"{request.META.get('HTTP_CONTENT_ENCODING', '')},{request.META.get('HTTP_TRANSFER_ENCODING', '')}"
    codings = {coding.strip().lower() for coding in named.split(",")}
    return bool(codings - {"", "identity", "chunked"})


class StaticFilesMiddleware(WhiteNoiseMiddleware):  # type: ignore[misc]
    """WhiteNoise without its warning about a missing folder, which only ``collectstatic`` creates."""

    def add_files(self, root: Path | str, prefix: str | None = None) -> None:
        if Path(root).is_dir():
            super().add_files(root, prefix)


class SkippedForTokens(MiddlewareMixin):
    """Skip the middleware for API calls with an Authorization header: they use no session."""

    def __call__(self, request: HttpRequest) -> Any:
        if "HTTP_AUTHORIZATION" in request.META and is_api_path(request.path_info):
            return self.get_response(request)
        return super().__call__(request)


class SessionMiddleware(SkippedForTokens, sessions.SessionMiddleware):
    """Django's session middleware, without a query for malformed session keys (NUL included)."""

    def process_request(self, request: HttpRequest) -> None:
        key = request.COOKIES.get(settings.SESSION_COOKIE_NAME, "")
        if not (key.isascii() and key.isalnum()):
            request.COOKIES.pop(settings.SESSION_COOKIE_NAME, None)
        super().process_request(request)


class AuthenticationMiddleware(SkippedForTokens, auth.AuthenticationMiddleware):
    pass


class MessageMiddleware(SkippedForTokens, messages.MessageMiddleware):
    pass
