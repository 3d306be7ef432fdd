"""The endpoints of coupons that the intake answers in its event loop; ``views`` has the same for every other request.

They take calls in their plain form only. For anything unusual they return None, and the site answers.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from functools import partial
from typing import TypeVar
from uuid import UUID

from common.api.errors import DomainError, NotFound, Unavailable
from common.api.lane import JSON, Endpoint, LaneRequest, LaneResponse
from common.api.pagination import USUAL_ROWS
from common.api.renderers import encode
from common.async_group_commit import AsyncGroupCommit
from common.bigint import MAX_BIGINT, parse_id
from common.group_commit import TooManyInProgress, WaitedTooLong
from common.processes.worker_threads import on_live_connections

from .. import metrics, selectors
from ..admission import Admission
from ..coupon_cache import CachedCoupon, coupon_cache
from ..issuance.accept import (
    accepted,
    incoming_request,
    no_such_coupon,
    not_executed,
    refuse_under_backpressure,
)
from ..issuance.accept_group import GroupCommitters, IncomingRequest, accept_group
from ..models import Coupon
from ..schemas import Coupon as CouponBody
from ..schemas import CouponPage
from .views import accepted_body, not_yourself

Item = TypeVar("Item")
Result = TypeVar("Result")

_SPACE = rb"[ \t\r\n]*"
_USER_ID = rb'"userId"' + _SPACE + rb":" + _SPACE + rb"([1-9][0-9]{0,18})" + _SPACE
_TYPE = rb'"couponType"' + _SPACE + rb":" + _SPACE + rb'"([A-Za-z0-9_-]{1,64})"' + _SPACE
# Plain bodies: known fields, once, in the usual order, without escapes.
_BY_TYPE = re.compile(_SPACE + rb"\{" + _SPACE + _TYPE + rb"(?:," + _SPACE + _USER_ID + rb")?\}" + _SPACE)
_BY_ID = re.compile(_SPACE + rb"(?:\{" + _SPACE + rb"(?:" + _USER_ID + rb")?\}" + _SPACE + rb")?")
_EMPTY = re.compile(_SPACE + rb"(?:\{" + _SPACE + rb"\}" + _SPACE + rb")?")

_PATH = re.compile(
    r"(?:/api/v1)?/coupons/(?:(?P<by_type>issue-async)|(?P<by_id>[0-9]{1,19})/issue-async)"
    r"|/api/v1/users/(?P<user>[0-9]{1,19})/coupons/(?P<for_user>[0-9]{1,19})/issue"
    r"|/api/v1/issue-requests/(?P<request>[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12})"
    r"|/api/v1/(?P<coupons>coupons)"
    r"|/api/v1/coupons/(?P<coupon>[0-9]{1,19})"
)


class CouponLane:
    """The endpoints, with the group commits and grouped reads behind them; one per process, used in its event loop."""

    def __init__(self, *, queue: Executor, selective: Executor, reads: Executor) -> None:
        """Each executor runs groups in its threads, a connection to PostgreSQL in each.

        ``queue``: groups of admissions that never refuse. ``selective``: groups of the other admissions, at most one
        per coupon at a time. ``reads``: statuses and coupons.
        """
        self._queue = queue
        self._selective = selective
        self._committers = GroupCommitters(self._create_committer)
        self._cached_coupons = _grouped(coupon_cache.load, reads)
        self._statuses = _grouped(selectors.request_statuses, reads)
        self._coupons = _grouped(_read_coupons, reads)
        self._lists = _grouped(_read_lists, reads)
        self._refreshing: set[int | str] = set()

    def find(self, method: str, path: str) -> Endpoint | None:
        """Return the endpoint of a call; None if the lane has none."""
        match = _PATH.fullmatch(path)
        if match is None:
            return None
        kind = match.lastgroup
        assert kind is not None
        argument = match[kind]
        if method == "POST":
            if kind == "by_type":
                return self._issue_by_type
            if kind == "by_id" and (coupon_id := parse_id(argument)):
                return partial(self._issue_by_id, coupon_id)
            if kind == "for_user" and (coupon_id := parse_id(argument)) and (user_id := parse_id(match["user"])):
                return partial(self._issue_for_user, user_id, coupon_id)
        elif method == "GET":
            if kind == "request":
                return partial(self._issue_request, UUID(argument))
            if kind == "coupons":
                return self._coupon_list
            if kind == "coupon" and (coupon_id := parse_id(argument)):
                return partial(self._coupon, coupon_id)
        return None

    def count_overload(self, method: str, path: str) -> None:
        """Count a call that is refused before its endpoint is called."""
        if method == "POST" and self.find(method, path) is not None:
            _overload_count.inc()

    async def _issue_by_type(self, request: LaneRequest) -> LaneResponse | None:
        if (body := _BY_TYPE.fullmatch(request.body)) is None:
            return None
        coupon_type, user_id = body.groups()
        return await self._issue(request, coupon_type.decode(), user_id)

    async def _issue_by_id(self, coupon_id: int, request: LaneRequest) -> LaneResponse | None:
        if (body := _BY_ID.fullmatch(request.body)) is None:
            return None
        return await self._issue(request, coupon_id, body[1])

    async def _issue_for_user(self, user_id: int, coupon_id: int, request: LaneRequest) -> LaneResponse | None:
        if _EMPTY.fullmatch(request.body) is None:
            return None
        return await self._issue(request, coupon_id, user_id)

    async def _issue(
        self, request: LaneRequest, id_or_type: int | str, user_id: bytes | int | None
    ) -> LaneResponse | None:
        target = request.user_id if user_id is None else int(user_id)
        if target > MAX_BIGINT:
            return None
        if target != request.user_id and not request.may_issue_for_others:
            raise not_yourself(request.user_id, target)
        try:
            refuse_under_backpressure()
            coupon = coupon_cache.fresh(id_or_type)
            if coupon is None:
                coupon = await _result(self._cached_coupons, id_or_type)
            elif coupon.is_half_old():
                self._refresh(id_or_type)
            if coupon is None or not coupon.is_for(target):
                raise no_such_coupon(id_or_type)
            incoming = incoming_request(
                coupon,
                user_id=target,
                caller_id=request.user_id,
                idempotency_key=request.idempotency_key,
                traceparent=request.traceparent,
            )
            await _result(self._committers.for_coupon(coupon), incoming)
            result = accepted(incoming)
        except DomainError as error:
            if not coupon_cache.is_rehearsal(id_or_type):
                metrics.REFUSED.labels(error.code).inc()
            raise
        if not coupon.rehearsal:
            _accepted_count.inc()
        location = f"/api/v1/issue-requests/{result.request_id}".encode()
        return LaneResponse(202, [(b"location", location), (b"retry-after", b"1"), JSON], accepted_body(result))

    def _refresh(self, id_or_type: int | str) -> None:
        """Read a coupon before its entry is too old to use: the crowd does not wait for the query."""
        if id_or_type not in self._refreshing:
            with suppress(TooManyInProgress):
                task = self._cached_coupons.submit(id_or_type)
                self._refreshing.add(id_or_type)
                task.add_done_callback(partial(self._refreshed, id_or_type))

    def _refreshed(self, id_or_type: int | str, task: asyncio.Future[CachedCoupon | None]) -> None:
        self._refreshing.discard(id_or_type)
        # A failed refresh is tried again with the next request; once the entry is too old, that request fails.
        task.exception()

    def _create_committer(self, admission: Admission) -> AsyncGroupCommit[IncomingRequest, IncomingRequest]:
        return _grouped(partial(accept_group, admission), self._selective if admission.may_refuse else self._queue)

    async def _issue_request(self, request_id: UUID, request: LaneRequest) -> LaneResponse:
        status = await _result(self._statuses, request_id)
        if status is None or (status.user_id != request.user_id and not request.may_issue_for_others):
            raise NotFound("There is no such request.")
        return _ok(status)

    async def _coupon(self, coupon_id: int, request: LaneRequest) -> LaneResponse:
        coupon = await _result(self._coupons, coupon_id)
        if coupon is None:
            raise NotFound(f"There is no coupon {coupon_id}.")
        return _ok(selectors.coupon_view(coupon))

    async def _coupon_list(self, request: LaneRequest) -> LaneResponse | None:
        rows = await _result(self._lists, None)
        # The address of a further page is the site's to build.
        return _ok(CouponPage(rows, None)) if len(rows) <= USUAL_ROWS else None


_accepted_count = metrics.ACCEPTED.labels("API")
_overload_count = metrics.REFUSED.labels(Unavailable.code)


def _grouped(work: Callable[[Sequence[Item]], Sequence[Result]], executor: Executor) -> AsyncGroupCommit[Item, Result]:
    return AsyncGroupCommit(on_live_connections(work), executor)


async def _result(committer: AsyncGroupCommit[Item, Result], item: Item) -> Result:
    """Return the item's result. Raises Unavailable if it was not executed."""
    try:
        return await committer.submit(item)
    except WaitedTooLong as error:
        raise not_executed() from error
    except TooManyInProgress as error:
        raise Unavailable("Too many requests are in progress. This request was not executed.", retry_after=1) from error


def _ok(body: object) -> LaneResponse:
    return LaneResponse(200, [JSON], encode(body))


def _read_coupons(ids: Sequence[int]) -> list[Coupon | None]:
    found = {coupon.id: coupon for coupon in selectors.coupons().filter(id__in=set(ids))}
    return [found.get(coupon_id) for coupon_id in ids]


def _read_lists(callers: Sequence[None]) -> list[list[CouponBody]]:
    """Return the first page, and one coupon more if there is another page, once for all callers."""
    rows = [selectors.coupon_view(coupon) for coupon in selectors.coupons().order_by("-id")[: USUAL_ROWS + 1]]
    return [rows] * len(callers)
