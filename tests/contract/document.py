"""Reading the OpenAPI document, and holding answers against it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jsonschema  # type: ignore[import-untyped]

Document = dict[str, Any]

# Formats are checked as well.
_FORMATS = jsonschema.Draft202012Validator.FORMAT_CHECKER


@dataclass(frozen=True)
class Call:
    """One operation of the document."""

    document: Document
    path: str
    method: str

    @property
    def operation(self) -> dict[str, Any]:
        operation: dict[str, Any] = self.document["paths"][self.path][self.method]
        return operation

    @property
    def responses(self) -> dict[int, dict[str, Any]]:
        return {
            int(status): resolved(self.document, response) for status, response in self.operation["responses"].items()
        }

    @property
    def success(self) -> int:
        """The status of the answer when all goes well."""
        [status] = [status for status in self.responses if status < 300]
        return status

    @property
    def bodies(self) -> dict[str, Any]:
        """The examples of the request's body, by name."""
        media = self.operation.get("requestBody", {}).get("content", {}).get("application/json", {})
        return {name: example["value"] for name, example in media.get("examples", {}).items()}

    def parameters(self, place: str) -> dict[str, Any]:
        """The example of each parameter that has one and stands in ``place`` (path, query or header)."""
        return {
            parameter["name"]: example["value"]
            for parameter in self.operation.get("parameters", [])
            if parameter["in"] == place
            for example in parameter.get("examples", {}).values()
        }

    @property
    def address(self) -> str:
        """The path, of the thing that the examples are about."""
        return self.path.format(**self.parameters("path"))


def codes(document: Document) -> set[str]:
    """The codes of all problems that the document tells of."""
    contents = [response["content"] for response in document["components"]["responses"].values()]
    return {code for content in contents for code in content["application/problem+json"]["examples"]}


def calls(document: Document) -> Iterator[Call]:
    for path, operations in document["paths"].items():
        for method in operations:
            yield Call(document, path, method)


def resolved(document: Document, part: Any) -> Any:
    """``part`` as a JSON Schema of its own: references in place, and no fields but those it names."""
    if isinstance(part, list):
        return [resolved(document, item) for item in part]
    if not isinstance(part, dict):
        return part
    if "$ref" in part:
        target: Any = document
        for name in part["$ref"].removeprefix("#/").split("/"):
            target = target[name]
        return resolved(document, target)
    part = {name: resolved(document, value) for name, value in part.items()}
    return part | ({"additionalProperties": False} if "properties" in part and "type" in part else {})


def assert_fits(schema: Any, value: Any) -> None:
    """That ``value`` has exactly the fields of ``schema`` (resolved), each of its type and format."""
    jsonschema.Draft202012Validator(schema, format_checker=_FORMATS).validate(value)


def assert_described(call: Call, response: Any) -> None:
    """That the answer of a test client to ``call`` is one of those described: status, headers, media type, body."""
    assert response.status_code in call.responses, response.content
    described = call.responses[response.status_code]
    for name, header in described.get("headers", {}).items():
        if header.get("required"):
            assert name in response, f"{response.status_code} without {name}"
        if name in response:
            assert_fits(header["schema"], _header_value(header["schema"], response[name]))
    [(media_type, media)] = described.get("content", {None: {"schema": {}}}).items()
    if media_type and media_type.endswith("json"):
        assert response["Content-Type"] == media_type
        assert_fits(media["schema"], json.loads(response.content))
    elif media_type:
        assert re.match(rf"{re.escape(media_type)}\b", response["Content-Type"])


def _header_value(schema: Any, text: str) -> Any:
    return int(text) if schema["type"] == "integer" else text
