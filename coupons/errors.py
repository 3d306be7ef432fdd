"""Errors that a caller is told about: HTTP status and code stand on the class."""

from __future__ import annotations


class DomainError(Exception):
    """Base of every refusal. ``detail`` is a sentence for the caller, ``retry_after`` seconds."""

    status = 400
    code = "invalid"
    title = "The request is invalid"

    def __init__(
        self,
        detail: str = "",
        *,
        errors: list[dict[str, str]] | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(detail or self.title)
        self.detail = detail or self.title
        self.errors = errors
        self.retry_after = retry_after


class InvalidRequest(DomainError):
    pass


class NotYourself(DomainError):
    status = 403
    code = "forbidden"
    title = "Not allowed"


class NotFound(DomainError):
    status = 404
    code = "not_found"
    title = "Not found"


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


class IdempotencyKeyReused(DomainError):
    status = 422
    code = "idempotency_key_reused"
    title = "The idempotency key was used for another request"


class Unavailable(DomainError):
    status = 503
    code = "unavailable"
    title = "Temporarily unavailable"
