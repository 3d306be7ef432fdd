"""How a rehearsal sends its requests: over HTTP to a running web process, or to the code behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol
from uuid import UUID

import httpx2
import msgspec

from common.api.errors import DomainError
from common.processes.lifecycle import first_line

from .. import selectors
from ..admission import ADMISSIONS
from ..coupon_cache import coupon_cache
from ..issuance.accept import incoming_request
from ..issuance.accept_group import accept_group
from ..models import Coupon

_SECONDS = 10.0


class SentRequest(NamedTuple):
    """A request and what was answered: ``request_id`` if it was accepted, else the problem ``code`` and why."""

    user_id: int
    request_id: UUID | None
    code: str = ""
    why: str = ""


class Sender(Protocol):
    """Sends the requests of a rehearsal. ``way`` says how, for the report."""

    way: str

    def send(self, clone: Coupon, users: Iterable[int]) -> list[SentRequest]:
        """Send a request for each user at once; returns them in order. Raises what the services raise."""

    def statuses(self, sent: Sequence[SentRequest]) -> list[str | None]:
        """Return the status of each accepted request, None if it is not known."""


class CodeSender:
    """Calls what the endpoints of ``web`` call, in this process."""

    way = "by the code of web, not over HTTP (see --url)"

    def send(self, clone: Coupon, users: Iterable[int]) -> list[SentRequest]:
        (cached,) = coupon_cache.load([clone.id])
        if cached is None:
            return [SentRequest(user, None, "not_found", "the copy cannot be read") for user in users]
        try:
            group = [
                incoming_request(cached, user_id=user, caller_id=user, idempotency_key=None, traceparent="")
                for user in users
            ]
        except DomainError as error:
            return [SentRequest(user, None, error.code, error.detail) for user in users]
        sent = []
        for request in accept_group(ADMISSIONS[cached.admission], group):
            # A refusal of an admission is a class or an object.
            fault = request.fault or request.refusal
            if fault is None:
                sent.append(SentRequest(request.user_id, request.request_id))
            else:
                sent.append(SentRequest(request.user_id, None, getattr(fault, "code", ""), str(fault)))
        return sent

    def statuses(self, sent: Sequence[SentRequest]) -> list[str | None]:
        found = selectors.request_statuses([item.request_id for item in sent if item.request_id is not None])
        return [None if status is None else status.status for status in found]


class HttpSender:
    """Calls the accept API of a running web process, at once for all users, and reads their statuses there."""

    def __init__(self, url: str, token: Callable[[int], str]) -> None:
        """``url`` of the web server, such as ``http://127.0.0.1:8000``; ``token`` returns a user's access token."""
        self._url = url.rstrip("/")
        self._token = token
        self.way = f"over HTTP at {self._url}"

    def send(self, clone: Coupon, users: Iterable[int]) -> list[SentRequest]:
        body = msgspec.json.encode({"couponType": clone.coupon_type})

        def issue(user_id: int) -> SentRequest:
            status, answer = self._call(client, "POST", "/api/v1/coupons/issue-async", user_id, body)
            if status == 202 and isinstance(request_id := answer.get("requestId"), str):
                return SentRequest(user_id, UUID(request_id))
            why = answer.get("detail") or "no answer of the accept API: is it the address of web?"
            return SentRequest(user_id, None, str(answer.get("code", "")), f"{status or 'no answer'}: {why}")

        wanted = list(users)
        with httpx2.Client(timeout=_SECONDS) as client, ThreadPoolExecutor(len(wanted)) as pool:
            return list(pool.map(issue, wanted))

    def statuses(self, sent: Sequence[SentRequest]) -> list[str | None]:
        def read(item: SentRequest) -> str | None:
            _, answer = self._call(client, "GET", f"/api/v1/issue-requests/{item.request_id}", item.user_id)
            return str(answer["status"]) if "status" in answer else None

        with httpx2.Client(timeout=_SECONDS) as client, ThreadPoolExecutor(len(sent)) as pool:
            return list(pool.map(read, sent))

    def _call(
        self, client: httpx2.Client, method: str, path: str, user_id: int, body: bytes | None = None
    ) -> tuple[int, dict[str, Any]]:
        """Return status and body of the answer; the status is 0 and ``detail`` the error if there is none."""
        headers = {"Authorization": f"Bearer {self._token(user_id)}"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            response = client.request(method, f"{self._url}{path}", content=body, headers=headers)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            return 0, {"detail": f"{type(error).__name__}: {first_line(error)}"}
        try:
            return response.status_code, _decoder.decode(response.content)
        except msgspec.MsgspecError:
            return response.status_code, {}


_decoder = msgspec.json.Decoder(dict[str, Any])
