"""The address of the client, which the intake sends to the site in a header that only the intake can write."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable
from typing import Any

from django.conf import settings

HEADER = b"x-intake-client"
_ENVIRON = "HTTP_X_INTAKE_CLIENT"

Application = Callable[[dict[str, Any], Any], Iterable[bytes]]


def with_client_address(application: Application) -> Application:
    """Set ``REMOTE_ADDR`` of requests from the intake to their client's; the header of others is removed."""
    expected = signature()

    def with_address(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        claimed, _, address = environ.pop(_ENVIRON, "").partition(" ")
        if address and hmac.compare_digest(claimed.encode("utf-8", "replace"), expected.encode()):
            environ["REMOTE_ADDR"] = address
        return application(environ, start_response)

    return with_address


def signature() -> str:
    """Return what proves that the header is the intake's: it is followed by a space and the address."""
    return hmac.digest(settings.SECRET_KEY.encode(), b"intake", "sha256").hex()
