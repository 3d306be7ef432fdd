"""Errors that the API returns to callers; HTTP status and problem code are on the class."""

from __future__ import annotations

from common.api.errors import DomainError


class CouponNotOpen(DomainError):
    status = 409
    code = "not_open"
    title = "The coupon is not open"


class SoldOut(DomainError):
    status = 409
    code = "sold_out"
    title = "The coupon is sold out"


class AlreadyIssued(DomainError):
    status = 409
    code = "already_issued"
    title = "The user has the coupon, or a request for it under way"


class CouponNotUsable(DomainError):
    status = 409
    code = "coupon_not_usable"
    title = "The coupon cannot be used for this order"
