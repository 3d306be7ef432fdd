"""Response bodies of the coupons API; that of a request's status is ``issuance.status_cache.RequestStatus``."""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

import msgspec
from msgspec import Meta

from common.api.pagination import Page
from common.bigint import MAX_BIGINT

from .admission import ADMISSIONS
from .events import AwareTime, CouponType, Id

Count = Annotated[int, Meta(ge=0, le=MAX_BIGINT, extra_json_schema={"format": "int64"})]


class Accepted(msgspec.Struct, frozen=True, rename="camel"):
    """An accepted request: it will reach SUCCESS or FAILED."""

    request_id: UUID
    status: Literal["PENDING"]
    coupon_id: Id
    coupon_type: CouponType
    user_id: Id
    sequence: (
        Annotated[int, Meta(ge=1, description="The position in the coupon's queue, if the admission assigns one.")]
        | None
    )


class Coupon(msgspec.Struct, frozen=True, rename="camel"):
    """A coupon; `state` and `serverTime` are by the database's clock."""

    coupon_id: Id
    coupon_type: CouponType
    name: str
    admission: Annotated[str, Meta(extra_json_schema={"enum": sorted(ADMISSIONS)})]
    discount_type: Literal["PERCENT", "FIXED"]
    discount_value: Annotated[Id, Meta(description="Percent, or won.")]
    total_quantity: Count
    issued_quantity: Count
    remaining: Count
    opens_at: AwareTime
    closes_at: AwareTime | None
    state: Literal["SCHEDULED", "OPEN", "PAUSED", "SOLD_OUT", "CLOSED"]
    server_time: AwareTime


class CouponPage(Page[Coupon], frozen=True):
    pass


class UserCoupon(msgspec.Struct, frozen=True, rename="camel"):
    """A user's coupon; an ISSUED one past `expiresAt` is EXPIRED."""

    user_coupon_id: Id
    coupon_id: Id
    coupon_type: CouponType
    status: Literal["ISSUED", "HELD", "USED", "EXPIRED", "REVOKED"]
    issued_at: AwareTime
    expires_at: AwareTime | None
    used_at: AwareTime | None


class UserCouponPage(Page[UserCoupon], frozen=True):
    pass
