"""What stands around every request: plain http, body size, and which of Django's parts an API call needs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from django.conf import settings
from django.contrib.auth import middleware as auth
from django.contrib.messages import middleware as messages
from django.contrib.sessions import middleware as sessions
from django.http import HttpRequest, HttpResponsePermanentRedirect
from django.http.request import split_domain_port
from django.http.response import HttpResponseBase
from django.utils.deprecation import MiddlewareMixin
from whitenoise.middleware import WhiteNoiseMiddleware  # type: ignore[import-untyped]

from couponsite.problems import is_api_path, problem

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


def limit_api_body(get_response: GetResponse) -> GetResponse:
    """Refuses API bodies that are too large (413) or of unknown length (400) before anyone reads them."""

    limit: int = settings.API_MAX_BODY_BYTES

    def middleware(request: HttpRequest) -> HttpResponseBase:
        if is_api_path(request.path_info):
            length = request.META.get("CONTENT_LENGTH") or ""
            if not length and "HTTP_TRANSFER_ENCODING" in request.META:
                return problem(request, "invalid", "The body has no Content-Length.")
            if length.isdigit() and int(length) > limit:
                return problem(request, "too_large", f"The body is larger than {limit} bytes.")
        return get_response(request)

    return middleware


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
    pass


class AuthenticationMiddleware(SkippedForTokens, auth.AuthenticationMiddleware):
    pass


class MessageMiddleware(SkippedForTokens, messages.MessageMiddleware):
    pass
