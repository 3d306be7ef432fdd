"""The requests of a user, as far as an index or Redis leads to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from redis.exceptions import RedisError

from common.processes.lifecycle import first_line

from .admission.gate.store import existing
from .issuance import status_cache
from .models import Coupon, IssueRequest, Reservation, UserCoupon
from .policy import is_rehearsal

# The coupons whose reservations and gates are searched, the newest.
MOST_COUPONS = 200
_MOST_ROWS = 50


@dataclass(frozen=True, slots=True)
class AdmittedRequest:
    """A request that holds a unit in the gate of a coupon, and is not decided as far as the gate knows."""

    request_id: UUID
    coupon: Coupon
    sequence: int
    is_pending: bool


@dataclass(frozen=True, slots=True)
class UserRequests:
    """What is known of a user's requests, each list the newest first.

    ``recent``: those that got nothing and that Redis still knows; ``redis_error``: why it could not be asked, or empty.
    """

    coupons: Sequence[UserCoupon]
    undecided: Sequence[Reservation]
    recent: Sequence[IssueRequest]
    in_gates: Sequence[AdmittedRequest]
    redis_error: str


def user_requests(user_id: int, *, coupon_type: str = "") -> UserRequests:
    """Find the requests of a user, of one coupon if ``coupon_type`` is given, without those of rehearsals.

    Must not be called in a transaction.
    """
    searched = Coupon.objects.filter(rehearsal=False).order_by("-id")
    held = UserCoupon.objects.filter(user_id=user_id, coupon__rehearsal=False).select_related("coupon").order_by("-id")
    if coupon_type:
        searched = searched.filter(coupon_type=coupon_type)
        held = held.filter(coupon__coupon_type=coupon_type)
    coupons = {coupon.id: coupon for coupon in searched[:MOST_COUPONS]}
    # The index of reservations begins with the coupon.
    undecided = Reservation.objects.filter(coupon_id__in=list(coupons), user_id=user_id).select_related("coupon")
    redis_error, recent_ids, in_gates = "", list[UUID](), list[AdmittedRequest]()
    try:
        recent_ids = status_cache.recent_requests(user_id)
        in_gates = _in_gates(user_id, coupons)
    except RedisError as error:
        redis_error = first_line(error)
    recent = {row.request_id: row for row in IssueRequest.objects.filter(request_id__in=recent_ids)}
    return UserRequests(
        coupons=list(held[:_MOST_ROWS]),
        undecided=list(undecided.order_by("-created_at")[:_MOST_ROWS]),
        recent=[
            row
            for request_id in recent_ids
            if (row := recent.get(request_id)) is not None
            and (not coupon_type or row.coupon_type == coupon_type)
            and not is_rehearsal(row.coupon_type, row.user_id)
        ],
        in_gates=in_gates,
        redis_error=redis_error,
    )


def _in_gates(user_id: int, coupons: dict[int, Coupon]) -> list[AdmittedRequest]:
    found = []
    for gate in existing(coupons):
        for entry in gate.read([user_id]).entries:
            if entry.request_id is not None:
                coupon, is_pending = coupons[gate.coupon_id], entry.age_ms is not None
                found.append(AdmittedRequest(entry.request_id, coupon, entry.sequence, is_pending))
    return found
