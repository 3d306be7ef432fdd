"""The OpenAPI description of an operation: declared on the view's method, read by ``AutoSchema``.

A Struct, a view and one ``Operation`` describe an endpoint completely. ``AutoSchema`` adds what operations have in
common: the schemas of Structs, security, and the problem responses. tests/contract compares the document with a server.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import msgspec
from django.conf import settings
from drf_spectacular import openapi
from drf_spectacular.drainage import warn
from drf_spectacular.extensions import OpenApiSerializerExtension
from drf_spectacular.plumbing import ComponentIdentity, ComponentRegistry, ResolvedComponent
from drf_spectacular.utils import Direction, OpenApiExample, OpenApiParameter, OpenApiRequest, OpenApiResponse

from common.api.errors import DomainError, FieldError
from common.api.pagination import MOST_ROWS, USUAL_ROWS
from common.api.problems import KINDS, Kind, Problem, problem_body
from common.api.requests import KEY_LENGTH

Method = TypeVar("Method", bound=Callable[..., Any])
Schema = dict[str, Any]

IDEMPOTENCY_KEY = OpenApiParameter(
    "Idempotency-Key",
    # Blanks around a header's value are not part of it.
    {"type": "string", "minLength": 1, "maxLength": KEY_LENGTH, "pattern": "^[!-~]([ -~]*[!-~])?$"},
    OpenApiParameter.HEADER,
    description=(
        "A repeat with the same key, caller and body gets the first accepted answer and has no second effect; with "
        "another body the answer is 422. Refusals are not stored: the same key may be used again. Keys are kept for at "
        "least a day."
    ),
    examples=[OpenApiExample("example", "7c0b1c0e-5a43-4e7e-9f6b-6f6b6f1a2d3c")],
)
TRACEPARENT = OpenApiParameter(
    "traceparent",
    str,
    OpenApiParameter.HEADER,
    description="W3C Trace Context, version 00: passed on to all events of the request. An invalid value is ignored.",
    examples=[OpenApiExample("example", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")],
)
PAGE = (
    OpenApiParameter("limit", {"type": "integer", "minimum": 1, "maximum": MOST_ROWS, "default": USUAL_ROWS}),
    OpenApiParameter("cursor", str, description="The cursor in `next` of the previous page."),
)
_ALLOW = {"required": True, "description": "The methods of this path.", "schema": {"type": "string"}}

# Problem codes that every operation of the API may return.
_EVERYWHERE = ("invalid", "method_not_allowed", "timeout", "too_large", "unavailable")
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


class Operation(msgspec.Struct, frozen=True):
    """Decorator that describes a view's method; the docstring of the method, or of its class, is the summary.

    ``answer``: example of the body of the successful response. ``bodies``: examples of the request's body by name.
    ``path``: an example by path parameter. ``headers`` and ``links``: those of the successful response, as OpenAPI
    objects by name. ``refusals``: the errors (or codes of common.api.problems) beside those of all operations.
    """

    operation_id: str
    answer: msgspec.Struct
    description: str
    status: int = 200
    bodies: Mapping[str, msgspec.Struct] = {}
    path: Mapping[str, int | str] = {}
    parameters: Sequence[OpenApiParameter] = ()
    headers: Mapping[str, Schema] = {}
    links: Mapping[str, Schema] = {}
    refusals: Sequence[type[DomainError] | str] = ()

    def __call__(self, method: Method) -> Method:
        method.operation = self  # type: ignore[attr-defined]
        return method


class StructSchema(OpenApiSerializerExtension):  # type: ignore[no-untyped-call]
    """The schemas of msgspec Structs as components."""

    target_class = "msgspec.Struct"
    match_subclasses = True

    def get_name(self, auto_schema: openapi.AutoSchema, direction: Direction) -> str:
        return str(self.target.__name__)

    def get_identity(self, auto_schema: openapi.AutoSchema, direction: Direction) -> Any:
        return ComponentIdentity(self._schemas()[self.target.__name__])  # type: ignore[no-untyped-call]

    def map_serializer(self, auto_schema: openapi.AutoSchema, direction: Direction) -> Schema:
        schemas = self._schemas()
        own: Schema = schemas.pop(self.target.__name__)
        for name, schema in schemas.items():
            identity = ComponentIdentity(schema)  # type: ignore[no-untyped-call]
            nested = ResolvedComponent(name, ResolvedComponent.SCHEMA, schema, identity)  # type: ignore[no-untyped-call]
            auto_schema.registry.register_on_missing(nested)
        return own

    def _schemas(self) -> dict[str, Schema]:
        _, schemas = msgspec.json.schema_components([self.target], ref_template="#/components/schemas/{name}")
        # The regular expressions of JSON Schema know no other end of text than ``$``.
        plain: dict[str, Schema] = msgspec.json.decode(msgspec.json.encode(schemas).replace(rb"\\Z", b"$"))
        return plain


class AutoSchema(openapi.AutoSchema):
    """Describes the methods of a view from their ``Operation``."""

    def get_operation(
        self, path: str, path_regex: str, path_prefix: str, method: str, registry: ComponentRegistry
    ) -> Schema | None:
        operation = super().get_operation(path, path_regex, path_prefix, method, registry)
        # An empty list means that the operation is open; drf-spectacular omits it.
        return operation and operation | {"security": self.get_auth()}

    def is_excluded(self) -> bool:
        is_declared = hasattr(self._method, "operation")
        if not is_declared:
            warn(f"{self.method} {self.path} has no common.api.schema.Operation")
        return not is_declared

    @property
    def _method(self) -> Any:
        return getattr(self.view, self.method.lower())

    @property
    def _operation(self) -> Operation:
        return cast(Operation, self._method.operation)

    def get_operation_id(self) -> str:
        return self._operation.operation_id

    def get_summary(self) -> str:
        return super().get_description().rstrip(".")

    def get_description(self) -> str:  # type: ignore[override]
        return ""

    def get_auth(self) -> list[Schema]:
        """Return the security requirements; none if the view has no authenticators and allows any caller."""
        auth = super().get_auth()
        return [] if auth == [{}] else auth

    def get_override_parameters(self) -> list[Any]:
        return list(self._operation.parameters)

    def get_request_serializer(self) -> Any:
        bodies = self._operation.bodies
        kinds = {type(body) for body in bodies.values()}
        return OpenApiRequest(kinds.pop(), examples=[_example(*body) for body in bodies.items()]) if kinds else None

    def get_response_serializers(self) -> Any:
        declared = self._operation
        answer = OpenApiResponse(type(declared.answer), declared.description, [_example("answer", declared.answer)])
        return {declared.status: answer}

    def _resolve_path_parameters(self, variables: Sequence[str]) -> list[Schema]:
        parameters: list[Schema] = super()._resolve_path_parameters(variables)  # type: ignore[no-untyped-call]
        examples = self._operation.path
        return [item | {"examples": {"Example": {"value": examples[item["name"]]}}} for item in parameters]

    def _get_response_bodies(self, direction: Direction = "response") -> Schema:
        responses = super()._get_response_bodies(direction)
        for name, described in (("headers", self._operation.headers), ("links", self._operation.links)):
            if described:
                responses[str(self._operation.status)][name] = dict(described)
        kinds = _kinds()
        codes_by_status: dict[int, list[str]] = {}
        for code in sorted(self._codes()):
            codes_by_status.setdefault(kinds[code].status, []).append(code)
        return responses | {str(status): self._refusal(codes, kinds) for status, codes in codes_by_status.items()}

    def _codes(self) -> set[str]:
        codes = {
            *_EVERYWHERE,
            *(refusal if isinstance(refusal, str) else refusal.code for refusal in self._operation.refusals),
        }
        is_write, has_callers = self.method != "GET", bool(self.get_auth())
        if is_write:
            codes.add("unsupported_media_type")
        if has_callers:
            codes.add("unauthenticated")
        if is_write and has_callers:
            # The CSRF check of a session failed.
            codes.add("forbidden")
        if self._operation.path:
            # A malformed id matches no path.
            codes.add("not_found")
        return codes

    def _refusal(self, codes: Sequence[str], kinds: Mapping[str, Kind]) -> Schema:
        """Return a reference to the response of ``codes``, which share a status."""
        problem = self.resolve_serializer(cast(Any, Problem), "response")
        narrowed = {"status": {"enum": [kinds[codes[0]].status]}, "code": {"enum": list(codes)}}
        response: Schema = {
            "description": "; ".join(f"`{code}`: {kinds[code].title}" for code in codes),
            "content": {
                "application/problem+json": {
                    "schema": {"allOf": [problem.ref, {"properties": narrowed}]},
                    "examples": {code: {"value": _problem_example(code, kinds[code])} for code in codes},
                }
            },
        }
        # Required only if no other code shares the status.
        headers = {
            name: {**header, "required": len(codes) == 1}
            for code in codes
            for name, header in _HEADERS.get(code, {}).items()
        }
        if headers:
            response["headers"] = headers
        component = ResolvedComponent(  # type: ignore[no-untyped-call]
            "-or-".join(codes), ResolvedComponent.RESPONSE, response, Problem
        )
        self.registry.register_on_missing(component)
        return component.ref


def _kinds() -> dict[str, Kind]:
    """Return status and title by problem code: those of common.api.problems and of the domain errors."""
    kinds = dict(KINDS)
    errors: list[type[DomainError]] = [DomainError]
    for error in errors:
        kinds.setdefault(error.code, Kind(error.status, error.title))
        errors += error.__subclasses__()
    return kinds


def _example(name: str, value: msgspec.Struct) -> OpenApiExample:
    return OpenApiExample(name, msgspec.to_builtins(value))


def _problem_example(code: str, kind: Kind) -> Any:
    message = "Expected `str`, got `int`"
    is_invalid = code == "invalid"
    body = problem_body(
        code,
        kind,
        f"{settings.PROBLEM_EXAMPLE_FIELD}: {message}" if is_invalid else f"{kind.title}.",
        settings.PROBLEM_EXAMPLE_PATH,
        [FieldError(field=settings.PROBLEM_EXAMPLE_FIELD, message=message)] if is_invalid else None,
    )
    return msgspec.to_builtins(body)
