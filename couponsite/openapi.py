"""The OpenAPI document: extensions of drf-spectacular, and the parts common to all operations.

Each view describes its own operation (coupons.api.openapi.describe). This module adds the authenticators, msgspec
Structs, the problems with their headers, the seeds' own paths, and the paths outside the API.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, cast

import msgspec
from django.conf import settings
from drf_spectacular.drainage import warn
from drf_spectacular.extensions import OpenApiAuthenticationExtension, OpenApiSerializerExtension
from drf_spectacular.openapi import AutoSchema

from common.api.errors import DomainError
from common.api.problems import KINDS, Kind

Endpoint = tuple[str, str, str, Any]
Schema = dict[str, Any]

API_PREFIX = "/api/v1"

# Problem codes that every operation of the API may return.
_EVERYWHERE = ("invalid", "method_not_allowed", "too_large", "unavailable")

_ALLOW = {"required": True, "description": "The methods of this path.", "schema": {"type": "string"}}
_RETRY_AFTER = {
    "required": True,
    "description": "Seconds after which to try again.",
    "schema": {"type": "integer", "minimum": 1},
}
_HEADERS: Mapping[str, Schema] = {
    "unauthenticated": {"WWW-Authenticate": {"required": True, "schema": {"type": "string", "enum": ["Bearer"]}}},
    "method_not_allowed": {"Allow": _ALLOW},
    "in_progress": {"Retry-After": _RETRY_AFTER},
    "throttled": {"Retry-After": _RETRY_AFTER},
    "unavailable": {"Retry-After": _RETRY_AFTER},
}
_PROBLEM = {
    "type": "object",
    "description": "An error (RFC 9457). Programs evaluate `code`; `detail` is for people.",
    "properties": {
        "type": {"type": "string", "format": "uri"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "instance": {"type": "string", "description": "The path of the request."},
        "code": {"type": "string"},
        "errors": {
            "type": "array",
            "description": "Errors by field.",
            "items": {
                "type": "object",
                "properties": {"field": {"type": "string"}, "message": {"type": "string"}},
                "required": ["field", "message"],
            },
        },
    },
    "required": ["type", "title", "status", "detail", "instance", "code"],
}


class BearerScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    target_class = "couponsite.authentication.BearerAuthentication"
    name = "bearer"

    def get_security_definition(self, auto_schema: AutoSchema) -> Schema:
        return {
            "type": "http",
            "scheme": "bearer",
            "bearerFormat": "JWT",
            "description": (
                "HS256 with the claims `user_id`, `scope` and `exp`. With the scope `coupons:issue-for-others` the "
                "bearer may act for other users."
            ),
        }


class SessionScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    target_class = "couponsite.authentication.SessionAuthentication"
    name = "session"

    def get_security_definition(self, auto_schema: AutoSchema) -> Schema:
        return {
            "type": "apiKey",
            "in": "cookie",
            "name": settings.SESSION_COOKIE_NAME,
            "description": (
                f"A session of the site. A POST needs the value of the cookie `{settings.CSRF_COOKIE_NAME}` in the "
                "header `X-CSRFToken`; without it the response is 403."
            ),
        }


class StructSchema(OpenApiSerializerExtension):  # type: ignore[no-untyped-call]
    """Support for msgspec Structs as request and response types in ``extend_schema``."""

    target_class = "msgspec.Struct"
    match_subclasses = True

    def get_name(self, auto_schema: AutoSchema, direction: str) -> str:
        return str(self.target.__name__)

    def map_serializer(self, auto_schema: AutoSchema, direction: str) -> Schema:
        _, schemas = msgspec.json.schema_components([self.target], ref_template="{name}")
        return cast(Schema, _openapi(schemas[self.target.__name__], schemas))


def _openapi(schema: Any, named: Mapping[str, Any]) -> Any:
    """Translate a JSON Schema to OpenAPI 3.0: inline Structs, and ``nullable`` instead of the type null."""
    if isinstance(schema, list):
        return [_openapi(item, named) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _openapi(named[schema["$ref"]], named)
    translated = {name: _openapi(value, named) for name, value in schema.items() if value != []}
    if isinstance(pattern := translated.get("pattern"), str):
        # The regular expressions of JSON Schema know no other end of text.
        translated["pattern"] = pattern.replace(r"\Z", "$")
    choices = translated.get("anyOf", [])
    if {"type": "null"} in choices:
        choices.remove({"type": "null"})
        translated["nullable"] = True
        if len(choices) == 1:
            translated |= translated.pop("anyOf")[0]
        if "enum" in translated:
            translated |= {"type": "string", "enum": [*translated["enum"], None]}
    if translated.get("maximum") == 2**63 - 1:
        translated["format"] = "int64"
    return translated


def skip_seed_paths(endpoints: list[Endpoint], **_context: Any) -> list[Endpoint]:
    """Preprocessing hook: leave out the seeds' own paths, which ``add_problem_responses`` adds as copies."""
    return [endpoint for endpoint in endpoints if endpoint[0].startswith(API_PREFIX)]


def add_problem_responses(result: Schema, **_context: Any) -> Schema:
    """Postprocessing hook: add the problem responses, the seeds' own paths, and the paths outside the API."""
    paths: Schema = result["paths"]
    kinds = _kinds()
    used = set(_EVERYWHERE)
    for path, operations in paths.items():
        for method, operation in operations.items():
            if "x-refusals" not in operation:
                warn(f"{method} {path} has no coupons.api.openapi.describe")
            operation["summary"] = operation.pop("description", "").rstrip(".")
            codes = _codes(path, method, operation)
            used |= codes
            operation["responses"] |= _refusals(codes, kinds)
            for status, links in operation.pop("x-links", {}).items():
                operation["responses"][str(status)]["links"] = links
    _add_seed_paths(paths)
    paths |= deepcopy(NON_API_PATHS)
    components: Schema = result["components"]
    components["schemas"]["Problem"] = _PROBLEM
    components["responses"] = {code: _refusal([code], kinds) for code in sorted(used)}
    return result


def _kinds() -> dict[str, Kind]:
    """Return status and title by problem code: those of common.api.problems and of the domain errors."""
    kinds = dict(KINDS)
    errors: list[type[DomainError]] = [DomainError]
    for error in errors:
        kinds.setdefault(error.code, Kind(error.status, error.title))
        errors += error.__subclasses__()
    return kinds


def _codes(path: str, method: str, operation: Schema) -> set[str]:
    """Return the problem codes of an operation; removes the view's ``x-refusals`` from ``operation``."""
    codes = {*_EVERYWHERE, *operation.pop("x-refusals", ())}
    if method != "get":
        codes.add("unsupported_media_type")
    if any(operation.get("security", ())):
        codes.add("unauthenticated")
        if method != "get":
            # The CSRF check of a session failed.
            codes.add("forbidden")
    if "{" in path:
        # A malformed id matches no path.
        codes.add("not_found")
    return codes


def _refusals(codes: set[str], kinds: Mapping[str, Kind]) -> Schema:
    by_status: dict[int, list[str]] = {}
    for code in sorted(codes):
        by_status.setdefault(kinds[code].status, []).append(code)
    return {
        str(status): _reference(same[0]) if len(same) == 1 else _refusal(same, kinds)
        for status, same in sorted(by_status.items())
    }


def _reference(code: str) -> Schema:
    return {"$ref": f"#/components/responses/{code}"}


def _refusal(codes: Sequence[str], kinds: Mapping[str, Kind]) -> Schema:
    """Build the response of ``codes``, which share a status."""
    narrowed = {"status": {"enum": [kinds[codes[0]].status]}, "code": {"enum": list(codes)}}
    response: Schema = {
        "description": "; ".join(f"`{code}`: {kinds[code].title}" for code in codes),
        "content": {
            "application/problem+json": {
                "schema": {"allOf": [{"$ref": "#/components/schemas/Problem"}, {"properties": narrowed}]},
                "examples": {code: {"value": _problem_example(code, kinds[code])} for code in codes},
            }
        },
    }
    headers = {name: header for code in codes for name, header in _HEADERS.get(code, {}).items()}
    if headers:
        # Required only if no other code shares the status.
        response["headers"] = {name: {**header, "required": len(codes) == 1} for name, header in headers.items()}
    return response


def _problem_example(code: str, kind: Kind) -> Schema:
    example: Schema = {
        "type": f"{settings.PROBLEM_TYPE_PREFIX}{code}",
        "title": kind.title,
        "status": kind.status,
        "detail": f"{kind.title}.",
        "instance": f"{API_PREFIX}/coupons/issue-async",
        "code": code,
    }
    if code == "invalid":
        message = "Expected `str`, got `int`"
        example |= {"detail": f"couponType: {message}", "errors": [{"field": "couponType", "message": message}]}
    return example


def _add_seed_paths(paths: Schema) -> None:
    """Copy the operations of the accept API to the seeds' paths without prefix."""
    # URLconfs are loaded after apps.
    from coupons.api import seed_urls

    by_shape = {_shape(path): path for path in paths}
    for route in seed_urls.urlpatterns:
        path = by_shape[f"{API_PREFIX}/{_shape(str(route.pattern))}"]
        operations = deepcopy(paths[path])
        for operation in operations.values():
            operation["operationId"] += "AtSeedPath"
            operation["description"] = f"The same operation as `{path}`."
            operation["tags"] = ["seed paths"]
        paths[path.removeprefix(API_PREFIX)] = operations


def _shape(path: str) -> str:
    return re.sub(r"{.*?}|<.*?>", "{}", path)


def _non_api(tag: str, operation_id: str, summary: str, responses: Schema) -> Schema:
    return {"get": {"operationId": operation_id, "summary": summary, "tags": [tag], "responses": responses}}


def _answer(description: str, media_type: str, schema: Schema) -> Schema:
    return {"description": description, "content": {media_type: {"schema": schema}}}


def _states(*names: str) -> Schema:
    state = {"type": "string", "enum": ["ok", "unavailable"]}
    return {"type": "object", "properties": dict.fromkeys(names, state), "required": list(names)}


_GET_ONLY = {"405": {"description": "Only GET and HEAD.", "headers": {"Allow": _ALLOW}}}
_PAGE_REFUSALS = {str(KINDS[code].status): _reference(code) for code in _EVERYWHERE if code != "unavailable"}
_READINESS = _states("status", "postgresql", "redis")

# Not API views, so drf-spectacular does not see them: written by hand.
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
        {"200": _answer("OpenAPI 3.0.", "application/vnd.oai.openapi+json", {"type": "object"}), **_PAGE_REFUSALS},
    ),
    "/api/docs": _non_api(
        "documentation",
        "docs",
        "This document as an interactive page",
        {"200": _answer("Swagger UI.", "text/html", {"type": "string"}), **_PAGE_REFUSALS},
    ),
}
