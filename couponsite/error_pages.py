"""Error responses: RFC 9457 problems on paths of the API, pages elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.csrf import csrf_exempt

from common.api.problems import KINDS, failure_response, is_outage, problem, report_outage

_API_PREFIXES = ("/api/", "/coupons/")


def is_api_path(path: str) -> bool:
    """Whether errors on ``path`` are problems instead of pages: the API, and the seeds' paths without its prefix."""
    return path.startswith(_API_PREFIXES)


def refusal(request: HttpRequest, code: str, detail: str, *, headers: Mapping[str, str] | None = None) -> HttpResponse:
    """Build the error response of ``code``: a problem on paths of the API, elsewhere a page."""
    if is_api_path(request.path):
        return problem(request, code, detail, headers=headers)
    status, title = KINDS[code]
    response = render(request, "error.html", {"title": title, "detail": detail}, status=status)
    for name, value in (headers or {}).items():
        response[name] = value
    return response


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    return refusal(request, "invalid", "The request is malformed.")


def permission_denied(request: HttpRequest, exception: Exception) -> HttpResponse:
    return refusal(request, "forbidden", "You have no permission for this.")


def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:
    return refusal(request, "forbidden", "The CSRF check failed: reload the page and try again.")


def page_not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    return refusal(request, "not_found", "There is nothing at this address.")


@csrf_exempt
def no_such_endpoint(request: HttpRequest) -> HttpResponse:
    """Answer unknown API paths with a problem; with DEBUG on, Django would answer with a page."""
    return problem(request, "not_found", "There is nothing at this address.")


def server_error(request: HttpRequest) -> HttpResponse:
    error = sys.exc_info()[1]
    if is_api_path(request.path):
        return failure_response(request, error)
    if is_outage(error):
        report_outage(error)
        detail = "The service is unavailable for a moment: try again."
        return refusal(request, "unavailable", detail, headers={"Retry-After": "1"})
    return refusal(request, "error", "Something went wrong on our side.")
