"""Requests and responses of the lane: the calls that the intake answers in its event loop, without Django's stack."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

import msgspec
from django.http import HttpResponse

from common.api.errors import DomainError
from common.api.problems import refusal_body

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
_PROBLEM = (b"content-type", b"application/problem+json")


def lane_refusal(path: str, error: DomainError) -> LaneResponse:
    """Return the problem response of a refusal of ``path``, as ``refusal_response`` does for Django.

    Not by a response of Django: refusals are most of the answers of a sold-out sale, and it would double their cost.
    """
    headers = [_PROBLEM]
    if error.retry_after is not None:
        headers.append((b"retry-after", b"%d" % error.retry_after))
    return LaneResponse(error.status, headers, msgspec.json.encode(refusal_body(path, error)))


def lane_response(response: HttpResponse) -> LaneResponse:
    """Convert a response of Django; its Content-Length is left out, since the server adds it."""
    headers = [
        (name.lower().encode("ascii"), value.encode("latin-1"))
        for name, value in response.items()
        if name != "Content-Length"
    ]
    return LaneResponse(response.status_code, headers, response.content)
