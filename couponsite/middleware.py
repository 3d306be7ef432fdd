"""What stands around every request: plain http, the body, and which of Django's parts an API call needs."""

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

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})


def https_outside_loopback(get_response: GetResponse) -> GetResponse:
    """Redirects plain http to https where ``HTTPS_REDIRECT`` says so, unless the client addressed its own machine.

    The Host header may be forged, but whoever forges it only takes the redirect from themself. On loopback
    cookies lose their Secure flag, or a login would not survive the next request there.
    """

    def middleware(request: HttpRequest) -> HttpResponseBase:
        if request.is_secure():
            return get_response(request)
        on_loopback = split_domain_port(request.META.get("HTTP_HOST", "").lower())[0] in _LOOPBACK
        if settings.HTTPS_REDIRECT and not on_loopback:
            return HttpResponsePermanentRedirect(f"https://{request.get_host()}{request.get_full_path()}")
        response = get_response(request)
        if on_loopback:
            for cookie in response.cookies.values():
                cookie["secure"] = ""
        return response

    return middleware


def check_body(get_response: GetResponse) -> GetResponse:
    """Refuses what no view must take for a body, on every path: too large (413), coded (415), cut short (400).

    A connection that broke looks to WSGI like a body that has ended, and an absent body counts as ``{}``: only the
    comparison with Content-Length keeps a broken connection from paying an order. A chunked body has no length to be
    compared with; the server hides where it was cut.
    """

    def middleware(request: HttpRequest) -> HttpResponseBase:
        limit: int = (
            settings.API_MAX_BODY_BYTES if is_api_path(request.path_info) else settings.DATA_UPLOAD_MAX_MEMORY_SIZE
        )
        length = _content_length(request)
        if length is None:
            return refusal(request, "invalid", "Content-Length is not a number of bytes.")
        if length > limit:
            return refusal(request, "too_large", f"The body is larger than {limit} bytes.")
        if not request.META.get("CONTENT_LENGTH") and "HTTP_TRANSFER_ENCODING" in request.META:
            return refusal(request, "invalid", "The body has no Content-Length.")
        if length and request.method not in ("GET", "HEAD") and _is_coded(request):
            return refusal(
                request,
                "unsupported_media_type",
                "The body is coded: send it as it is, without Content-Encoding.",
                headers={"Accept-Encoding": "identity"},
            )
        if (arrived := _arrived(request)) < length:
            return refusal(request, "invalid", f"The body ended early: {arrived} of {length} bytes arrived.")
        return get_response(request)

    return middleware


def _content_length(request: HttpRequest) -> int | None:
    """Bytes that the client announced, 0 without the header; None for what is no number."""
    text: str = request.META.get("CONTENT_LENGTH") or "0"
    if not (text.isascii() and text.isdigit()):
        return None
    # 19 digits are more than any body has; int() refuses thousands with an error of its own.
    return int(text.lstrip("0")[:19] or "0")


def _arrived(request: HttpRequest) -> int:
    """Bytes of the body that came before it, or the connection, ended."""
    try:
        return len(request.body)
    except UnreadablePostError:
        return 0


def _is_coded(request: HttpRequest) -> bool:
    """Whether the body is compressed or coded in another way, as a content coding or as a transfer coding."""
    named = f"{request.META.get('HTTP_CONTENT_ENCODING', '')},{request.META.get('HTTP_TRANSFER_ENCODING', '')}"
    codings = {coding.strip().lower() for coding in named.split(",")}
    return bool(codings - {"", "identity", "chunked"})


class StaticFilesMiddleware(WhiteNoiseMiddleware):  # type: ignore[misc]
    """WhiteNoise without the warning about a folder that only ``collectstatic`` makes."""

    def add_files(self, root: Path | str, prefix: str | None = None) -> None:
        if Path(root).is_dir():
            super().add_files(root, prefix)


class SkippedForTokens(MiddlewareMixin):
    """Leaves a middleware out for API calls that bring an Authorization header: they have no session."""

    def __call__(self, request: HttpRequest) -> Any:
        if "HTTP_AUTHORIZATION" in request.META and is_api_path(request.path_info):
            return self.get_response(request)
        return super().__call__(request)


class SessionMiddleware(SkippedForTokens, sessions.SessionMiddleware):
    """Django's, which would ask the database for any text that a cookie can spell, NUL included."""

    def process_request(self, request: HttpRequest) -> None:
        key = request.COOKIES.get(settings.SESSION_COOKIE_NAME, "")
        if not (key.isascii() and key.isalnum()):
            request.COOKIES.pop(settings.SESSION_COOKIE_NAME, None)
        super().process_request(request)


class AuthenticationMiddleware(SkippedForTokens, auth.AuthenticationMiddleware):
    pass


class MessageMiddleware(SkippedForTokens, messages.MessageMiddleware):
    pass
