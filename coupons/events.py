"""The domain events of coupon requests. ``messages`` converts them to messages and back."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

import msgspec

from common.bigint import MAX_BIGINT

Id = Annotated[int, msgspec.Meta(ge=1, le=MAX_BIGINT, extra_json_schema={"format": "int64"})]
CouponType = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{1,64}\Z")]
AwareTime = Annotated[datetime, msgspec.Meta(tz=True)]


class IssueRequested(msgspec.Struct, frozen=True, kw_only=True, gc=False, rename="camel"):
    """A user requests a coupon. This service sets all ids; other producers may omit the coupon's id or its type."""

    request_id: UUID | None = None
    user_id: Id
    coupon_id: Id | None = None
    coupon_type: CouponType | None = None
    requested_at: AwareTime | None = None
    source: Literal["API", "BATCH"] = "API"
    admission: str = "queue"
    sequence: int | None = None


class IssueEnded(msgspec.Struct, frozen=True, kw_only=True, gc=False, rename="camel"):
    """A request reached its result. Fields that were unreadable in a failed request are None or empty."""

    request_id: UUID
    user_id: int | None
    coupon_id: int | None
    coupon_type: str
    status: Literal["SUCCESS", "FAILED"]
    reason: str | None
    user_coupon_id: int | None
    processed_at: AwareTime
