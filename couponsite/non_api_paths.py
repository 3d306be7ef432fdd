"""The paths outside the API in the OpenAPI document: not API views, so drf-spectacular does not see them."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]


def _non_api(tag: str, operation_id: str, summary: str, responses: Schema) -> Schema:
    operation = {"operationId": operation_id, "summary": summary, "tags": [tag], "security": [], "responses": responses}
    return {"get": operation}


def _answer(description: str, media_type: str, schema: Schema) -> Schema:
    return {"description": description, "content": {media_type: {"schema": schema}}}


def _states(*names: str) -> Schema:
    state = {"type": "string", "enum": ["ok", "unavailable"]}
    return {"type": "object", "properties": dict.fromkeys(names, state), "required": list(names)}


# Also in common.api.schema. The settings import this module, so it must not import rest_framework, which reads them.
_ALLOW = {"required": True, "description": "The methods of this path.", "schema": {"type": "string"}}
_GET_ONLY = {"405": {"description": "Only GET and HEAD.", "headers": {"Allow": _ALLOW}}}
_PAGE_REFUSALS = {
    status: {"$ref": f"#/components/responses/{code}"}
    for status, code in (("400", "invalid"), ("405", "method_not_allowed"), ("413", "too_large"))
}
_READINESS = _states("status", "postgresql", "redis")

NON_API_PATHS: Schema = {
    "/livez": _non_api(
        "probes",
        "livez",
        "Whether the process answers",
        {"200": _answer("The process answers.", "application/json", _states("status")), **_GET_ONLY},
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
