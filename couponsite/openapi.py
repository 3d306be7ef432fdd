"""What drf-spectacular cannot see by itself: our authenticators, msgspec Structs, and the problems."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import msgspec
from drf_spectacular.extensions import OpenApiAuthenticationExtension, OpenApiSerializerExtension
from drf_spectacular.openapi import AutoSchema

Endpoint = tuple[str, str, str, Any]

_PROBLEM = {
    "type": "object",
    "properties": {
        "type": {"type": "string", "format": "uri"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "instance": {"type": "string"},
        "code": {"type": "string"},
        "errors": {
            "type": "array",
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

    def get_security_definition(self, auto_schema: AutoSchema) -> dict[str, Any]:
        return {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}


class SessionScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    target_class = "couponsite.authentication.SessionAuthentication"
    name = "session"

    def get_security_definition(self, auto_schema: AutoSchema) -> dict[str, Any]:
        return {"type": "apiKey", "in": "cookie", "name": "sessionid"}


class StructSchema(OpenApiSerializerExtension):  # type: ignore[no-untyped-call]
    """Lets ``extend_schema`` take a msgspec Struct for a request or a response."""

    target_class = "msgspec.Struct"
    match_subclasses = True

    def get_name(self, auto_schema: AutoSchema, direction: str) -> str:
        return str(self.target.__name__)

    def map_serializer(self, auto_schema: AutoSchema, direction: str) -> dict[str, Any]:
        _, schemas = msgspec.json.schema_components([self.target], ref_template="{name}")
        return cast(dict[str, Any], _openapi(schemas[self.target.__name__], schemas))


def _openapi(schema: Any, named: Mapping[str, Any]) -> Any:
    """A JSON Schema as OpenAPI 3.0 writes it: Structs in place, and nullable an attribute instead of a type."""
    if isinstance(schema, list):
        return [_openapi(item, named) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _openapi(named[schema["$ref"]], named)
    translated = {name: _openapi(value, named) for name, value in schema.items() if value != []}
    if isinstance(pattern := translated.get("pattern"), str):
        # The end of the text, in the regular expressions of JSON Schema.
        translated["pattern"] = pattern.replace(r"\Z", "$")
    choices = translated.get("anyOf", [])
    if {"type": "null"} in choices:
        choices.remove({"type": "null"})
        translated["nullable"] = True
        if len(choices) == 1:
            translated |= translated.pop("anyOf")[0]
        if "enum" in translated:
            translated |= {"type": "string", "enum": [*translated["enum"], None]}
    return translated


def one_address_per_door(endpoints: list[Endpoint], **_context: Any) -> list[Endpoint]:
    """Preprocessing hook: leaves out the seeds' own paths, which are the doors under ``/api/v1/`` once more."""
    return [endpoint for endpoint in endpoints if endpoint[0].startswith("/api/")]


def describe_problems(result: dict[str, Any], **_context: Any) -> dict[str, Any]:
    """Postprocessing hook: every operation may answer a problem."""
    result.setdefault("components", {}).setdefault("schemas", {})["Problem"] = _PROBLEM
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    for operations in result["paths"].values():
        for operation in operations.values():
            responses = operation["responses"]
            responses.setdefault("4XX", {"description": "The request was refused.", "content": content})
            responses.setdefault("5XX", {"description": "The service could not answer.", "content": content})
    return result
