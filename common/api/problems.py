"""Every refusal of the API as an RFC 9457 problem: errors of the apps, DRF and Django, and outages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple, Protocol

import msgspec
import structlog
from django.conf import settings
from django.core.exceptions import PermissionDenied, SuspiciousOperation
from django.core.signals import got_request_exception
from django.http import Http404, HttpRequest, HttpResponse
from django_redis.exceptions import ConnectionInterrupted
from msgspec import Meta
from redis.exceptions import RedisError
from rest_framework import exceptions as drf

from common.api.errors import DomainError, FieldError, InvalidRequest, NotFound, NotYourself, Unavailable
from common.postgres.connections import drop_connections
from common.processes.log_limit import LogLimit
from common.processes.outages import is_outcome_unknown, is_over_limit, is_transient

logger = structlog.get_logger(__name__)


class Kind(NamedTuple):
    status: int
    title: str


KINDS = {
    # Codes that the domain's errors have too: same status, same title.
    **{error.code: Kind(error.status, error.title) for error in (InvalidRequest, NotYourself, NotFound, Unavailable)},
    "unauthenticated": Kind(401, "Authentication is missing or not valid"),
    "method_not_allowed": Kind(405, "Method not allowed"),
    "timeout": Kind(408, "The request took too long"),
    "too_large": Kind(413, "The body is too large"),
    "unsupported_media_type": Kind(415, "Unsupported media type"),
    "throttled": Kind(429, "Too many requests"),
    "error": Kind(500, "Internal error"),
}


class Addressed(Protocol):
    """A request of Django or of the lane."""

    @property
    def path(self) -> str: ...


class BodyTooLarge(drf.APIException):
    """The body is larger than the API takes."""

    status_code = 413
    default_code = "too_large"
    default_detail = "The body is too large."


class Problem(msgspec.Struct, frozen=True):
    """An error (RFC 9457). Programs evaluate `code`; `detail` is for people."""

    type: Annotated[str, Meta(extra_json_schema={"format": "uri"})]
    title: str
    status: int
    detail: str
    instance: Annotated[str, Meta(description="The path of the request.")]
    code: str
    errors: Annotated[list[FieldError], Meta(description="Errors by field.")] | msgspec.UnsetType = msgspec.UNSET


def problem_body(code: str, kind: Kind, detail: str, path: str, errors: list[FieldError] | None = None) -> Problem:
    """Build the body of a problem response to a request for ``path``."""
    uri = f"{settings.PROBLEM_TYPE_PREFIX}{code}"
    return Problem(uri, kind.title, kind.status, detail, path, code, errors or msgspec.UNSET)


def problem(
    request: Addressed,
    code: str,
    detail: str,
    *,
    errors: list[FieldError] | None = None,
    headers: Mapping[str, str] | None = None,
) -> HttpResponse:
    """Build an ``application/problem+json`` response; ``code`` is one of KINDS."""
    return _response(problem_body(code, KINDS[code], detail, request.path, errors), headers)


def _response(body: Problem, headers: Mapping[str, str] | None) -> HttpResponse:
    response = HttpResponse(
        msgspec.json.encode(body), status=body.status, content_type="application/problem+json", headers=headers
    )
    # Keeps Django from logging every refusal: outages and faults are logged in this module.
    response._has_been_logged = True  # type: ignore[attr-defined]
    return response


def exception_handler(error: Exception, context: Mapping[str, Any]) -> HttpResponse:
    """Return the problem response for ``error`` (DRF's ``EXCEPTION_HANDLER``)."""
    request: HttpRequest = context["request"]._request
    match error:
        case DomainError():
            return refusal_response(request, error)
        case drf.NotAuthenticated() | drf.AuthenticationFailed():
            return problem(request, "unauthenticated", str(error.detail), headers={"WWW-Authenticate": "Bearer"})
        case drf.MethodNotAllowed():
            return problem(request, "method_not_allowed", str(error.detail))
        case drf.Throttled():
            wait: float | None = getattr(error, "wait", None)
            headers = {} if wait is None else {"Retry-After": str(max(1, round(wait)))}
            return problem(request, "throttled", "Try again later.", headers=headers)
        case drf.UnsupportedMediaType():
            return problem(request, "unsupported_media_type", "Send the body as application/json.")
        case BodyTooLarge():
            return problem(request, "too_large", str(error.detail))
        case drf.ValidationError():
            return problem(request, "invalid", "The request is invalid.", errors=_flatten(error.detail))
        case drf.ParseError():
            return problem(request, "invalid", str(error.detail))
        case drf.PermissionDenied():
            return problem(request, "forbidden", str(error.detail))
        case drf.NotFound() | Http404():
            return problem(request, "not_found", "There is nothing at this address.")
        case PermissionDenied():
            return problem(request, "forbidden", "You have no permission for this.")
        case SuspiciousOperation():
            return problem(request, "invalid", "The request is malformed.")
    return failure_response(request, error)


def refusal_body(path: str, error: DomainError) -> Problem:
    """Build the body of the problem response of a refusal."""
    return problem_body(error.code, Kind(error.status, error.title), error.detail, path, error.errors)


def refusal_response(request: Addressed, error: DomainError) -> HttpResponse:
    """Return the problem response of a refusal."""
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    return _response(refusal_body(request.path, error), headers)


def failure_response(request: Addressed, error: BaseException | None) -> HttpResponse:
    """503 for an outage of PostgreSQL or Redis, else 500; the cause is logged, never sent to the client."""
    if error is not None and is_outage(error):
        report_outage(error)
        return unavailable(request, _outage_detail(error))
    logger.error("request failed", path=request.path, exc_info=error)
    got_request_exception.send(sender=None, request=request)
    return problem(request, "error", "Something went wrong on our side.")


def unavailable(request: Addressed, detail: str) -> HttpResponse:
    """Return a 503 problem with ``Retry-After: 1``."""
    return problem(request, "unavailable", detail, headers={"Retry-After": "1"})


def _outage_detail(error: BaseException) -> str:
    if is_outcome_unknown(error):
        return (
            "The database did not confirm in time: the call may have been accepted. Repeated with the same "
            "Idempotency-Key it has no second effect; repeated without a key, it can take effect twice (a POST that "
            "creates something, such as an order)."
        )
    if is_over_limit(error):
        return "The call waited too long for a concurrent change, and was not executed. Try again in a moment."
    return "The service is unavailable for a moment."


def is_outage(error: BaseException | None) -> bool:
    """Whether PostgreSQL or Redis could not answer: unreachable, overloaded, or a replica that accepts no writes."""
    return error is not None and (is_transient(error) or isinstance(error, RedisError | ConnectionInterrupted))


_log_limit = LogLimit()


def report_outage(error: BaseException | None) -> None:
    """Log the outage, at most one line a second per process, and drop this thread's database connections.

    They are kept if ``error`` is a statement or lock timeout: then the connection still works.
    """
    if error is None or not is_over_limit(error):
        drop_connections()
    if _log_limit.due("outage"):
        logger.warning("a server did not answer", error=type(error).__name__, message=str(error).strip()[:300])


def _flatten(detail: Any, field: str = "") -> list[FieldError]:
    if isinstance(detail, Mapping):
        nested = ((f"{field}.{name}" if field else str(name), value) for name, value in detail.items())
        return [error for name, value in nested for error in _flatten(value, name)]
    if isinstance(detail, list | tuple):
        return [error for value in detail for error in _flatten(value, field)]
    return [{"field": field, "message": str(detail)}]
