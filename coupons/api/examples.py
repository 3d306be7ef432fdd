"""The examples of the API's description; they are all about one user, coupon and request."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

from ..issuance.status_cache import RequestStatus
from ..policy import PENDING, SUCCESS
from ..schemas import Accepted, Coupon, CouponPage, UserCoupon, UserCouponPage

COUPON_ID = 7
COUPON_TYPE = "SUMMER-2026"
USER_ID = 1001
USER_COUPON_ID = 53
REQUEST_ID = "0197c3f2-8c1e-7b43-9d5a-2f6e1c0b4a99"

_OPENS_AT = datetime(2026, 7, 1, 3, tzinfo=UTC)
_ISSUED_AT = _OPENS_AT + timedelta(microseconds=530_771)

ACCEPTED = Accepted(UUID(REQUEST_ID), PENDING, COUPON_ID, COUPON_TYPE, USER_ID, sequence=None)
REQUEST_STATUS = RequestStatus(
    UUID(REQUEST_ID),
    COUPON_TYPE,
    USER_ID,
    SUCCESS,
    reason=None,
    user_coupon_id=USER_COUPON_ID,
    requested_at="2026-07-01T03:00:00.412094Z",
    processed_at="2026-07-01T03:00:00.530771Z",
)
COUPON = Coupon(
    COUPON_ID,
    COUPON_TYPE,
    name="Summer sale",
    admission="queue",
    discount_type="PERCENT",
    discount_value=10,
    total_quantity=1000,
    issued_quantity=320,
    remaining=680,
    opens_at=_OPENS_AT,
    closes_at=None,
    state="OPEN",
    server_time=_ISSUED_AT,
)
COUPON_PAGE = CouponPage([COUPON], next=None)
USER_COUPON = UserCoupon(
    USER_COUPON_ID,
    COUPON_ID,
    COUPON_TYPE,
    status="ISSUED",
    issued_at=_ISSUED_AT,
    expires_at=_ISSUED_AT + timedelta(days=30),
    used_at=None,
)
USER_COUPON_PAGE = UserCouponPage([USER_COUPON], next=None)
