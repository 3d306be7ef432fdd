"""Requests and responses of the lane: the calls that the intake answers in its event loop, without Django's stack."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

import msgspec
from django.http import HttpResponse

Headers = list[tuple[bytes, bytes]]


class LaneRequest(msgspec.Struct, gc=False):
    """A call with a verified token. ``body`` is complete; ``traceparent`` is empty if a new trace begins."""

    path: str
    user_id: int
    may_issue_for_others: bool
    body: bytes
    idempotency_key: str | None
    traceparent: str


class LaneResponse(NamedTuple):
    status: int
    headers: Headers
    body: bytes


# None: the site has to answer.
Endpoint = Callable[[LaneRequest], Awaitable[LaneResponse | None]]

JSON = (b"content-type", b"application/json")


def lane_response(response: HttpResponse) -> LaneResponse:
    """Convert a response of Django; its Content-Length is left out, since the server adds it."""
    headers = [
        (name.lower().encode("ascii"), value.encode("latin-1"))
        for name, value in response.items()
        if name != "Content-Length"
    ]
    return LaneResponse(response.status_code, headers, response.content)
