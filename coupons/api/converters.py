"""Path converters. Text that cannot be an id matches no path, so the answer is 404."""

from __future__ import annotations

from django.urls import register_converter
from django.urls.converters import IntConverter, UUIDConverter

from common.bigint import parse_id


class Id64Converter(IntConverter):
    """A positive 64-bit integer."""

    regex = "[0-9]{1,19}"

    def to_python(self, value: str) -> int:
        if (number := parse_id(value)) is None:
            raise ValueError(value)
        return number


class AnyCaseUuidConverter(UUIDConverter):
    """A UUID with hyphens, in upper or lower case."""

    regex = "[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}"


register_converter(Id64Converter, "id64")
register_converter(AnyCaseUuidConverter, "anyuuid")
