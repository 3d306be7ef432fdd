"""Refusals of the API: each class holds its HTTP status, code and title."""

from __future__ import annotations

from typing import TypedDict


class FieldError(TypedDict):
    field: str
    message: str


class DomainError(Exception):
    """Base of every refusal.

    ``detail`` is a sentence for the caller (default: the title), ``errors`` lists the invalid fields, and
    ``retry_after`` is in seconds.
    """

    status = 400
    code = "invalid"
    title = "The request is invalid"

    def __init__(
        self,
        detail: str = "",
        *,
        errors: list[FieldError] | None = None,
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


class IdempotencyKeyReused(DomainError):
    status = 422
    code = "idempotency_key_reused"
    title = "The idempotency key was used for another request"


class Unavailable(DomainError):
    status = 503
    code = "unavailable"
    title = "Temporarily unavailable"
