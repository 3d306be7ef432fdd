"""drf-spectacular's settings: the title page of the OpenAPI document, and the paths that are not API views."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from common.bigint import MAX_BIGINT

Schema = dict[str, Any]


def _non_api(tag: str, operation_id: str, summary: str, responses: Schema) -> Schema:
    operation = {"operationId": operation_id, "summary": summary, "tags": [tag], "security": [], "responses": responses}
    return {"get": operation}


def _answer(description: str, media_type: str, schema: Schema) -> Schema:
    return {"description": description, "content": {media_type: {"schema": schema}}}


def _states(**states: Sequence[str]) -> Schema:
    properties = {name: {"type": "string", "enum": list(values)} for name, values in states.items()}
    return {"type": "object", "properties": properties, "required": list(states)}


# Also in common.api.schema. The settings import this module, so it must not import rest_framework, which reads them.
_ALLOW = {"required": True, "description": "The methods of this path.", "schema": {"type": "string"}}
_GET_ONLY = {"405": {"description": "Only GET and HEAD.", "headers": {"Allow": _ALLOW}}}
_PAGE_REFUSALS = {
    status: {"$ref": f"#/components/responses/{code}"}
    for status, code in (("400", "invalid"), ("405", "method_not_allowed"), ("413", "too_large"))
}
_UP_OR_NOT = ("ok", "unavailable")
_READINESS = _states(
    status=_UP_OR_NOT,
    postgresql=_UP_OR_NOT,
    redis=("ok", "read_only", "unavailable"),
    outbox=("ok", "holding", "unknown"),
)

_NON_API_PATHS: Schema = {
    "/livez": _non_api(
        "probes",
        "livez",
        "Whether the process answers",
        {"200": _answer("The process answers.", "application/json", _states(status=["ok"])), **_GET_ONLY},
    ),
    "/readyz": _non_api(
        "probes",
        "readyz",
        "Whether the service is ready for requests",
        {
            "200": _answer("PostgreSQL answers; Redis may be unavailable.", "application/json", _READINESS),
            "503": _answer("PostgreSQL is unavailable.", "application/json", _READINESS),
            **_GET_ONLY,
        },
    ),
    "/metrics": _non_api(
        "probes",
        "metrics",
        "Metrics in the text format of Prometheus",
        {"200": _answer("The metrics of all web processes.", "text/plain", {"type": "string"}), **_GET_ONLY},
    ),
    "/api/schema": _non_api(
        "documentation",
        "schema",
        "This document",
        {"200": _answer("OpenAPI 3.1.", "application/vnd.oai.openapi+json", {"type": "object"}), **_PAGE_REFUSALS},
    ),
    "/api/docs": _non_api(
        "documentation",
        "docs",
        "This document as an interactive page",
        {"200": _answer("Swagger UI.", "text/html", {"type": "string"}), **_PAGE_REFUSALS},
    ),
}

SETTINGS: Schema = {
    "TITLE": "Flash coupons",
    "DESCRIPTION": (
        "First come, first served coupons. A request for a coupon is accepted at once (202) and decided soon after: "
        "`GET /api/v1/issue-requests/{requestId}` returns its result. Orders are placed with or without a coupon, paid "
        "before they expire, and paid once however often the payment is requested.\n\n"
        "Bodies are one JSON object of at most 16 KiB without unknown fields; an empty body counts as `{}`. Times are "
        "ISO 8601 in UTC, money is in won, ids are positive 64-bit integers. Integers are written without "
        "a fraction: 5, not 5.0. Errors are RFC 9457 problems with a `code`. Lists are "
        "paginated: `next` is the URL of the next page, or null."
    ),
    "VERSION": "1",
    "OAS_VERSION": "3.1.1",
    "SERVERS": [{"url": "/", "description": "The server that this document comes from."}],
    "LICENSE": {"name": "MIT", "identifier": "MIT"},
    "SERVE_INCLUDE_SCHEMA": False,
    "SERVE_PERMISSIONS": ["rest_framework.permissions.AllowAny"],
    "SERVE_AUTHENTICATION": [],
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    # Without this the page sends the document to a public validator.
    "SWAGGER_UI_SETTINGS": {"deepLinking": True, "persistAuthorization": True, "validatorUrl": None},
    "CAMELIZE_NAMES": True,
    "SCHEMA_PATH_PREFIX": r"/api/v1",
    "PATH_CONVERTER_OVERRIDES": {
        "id64": {"type": "integer", "format": "int64", "minimum": 1, "maximum": MAX_BIGINT},
        "anyuuid": {"type": "string", "format": "uuid"},
    },
    # Not API views, so drf-spectacular does not see them.
    "APPEND_PATHS": _NON_API_PATHS,
    "POSTPROCESSING_HOOKS": [],
}
