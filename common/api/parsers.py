"""Parsing of request bodies: one JSON object per body."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import IO, Any

from django.conf import settings
from django.http import UnreadablePostError
from rest_framework.exceptions import ParseError
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.parsers import BaseParser
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request

from common.api.problems import BodyTooLarge
from common.api.strict_json import InvalidJSON, decode


class StrictJSONParser(BaseParser):
    """A JSON object decoded by common.api.strict_json; an empty body counts as ``{}``.

    Raises ParseError (400) for bad JSON and for a JSON value that is not an object, BodyTooLarge (413) past
    ``API_MAX_BODY_BYTES``.
    """

    media_type = "application/json"

    def parse(
        self,
        stream: IO[Any],
        media_type: str | None = None,
        parser_context: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        limit: int = settings.API_MAX_BODY_BYTES
        try:
            body = stream.read(limit + 1)
        except UnreadablePostError:
            raise ParseError("The body ended early.") from None
        if len(body) > limit:
            raise BodyTooLarge
        if not body:
            return {}
        try:
            value = decode(body)
        except InvalidJSON as error:
            raise ParseError(str(error)) from None
        if not isinstance(value, dict):
            raise ParseError("The body is not a JSON object.")
        return value


class JSONOnly(BaseContentNegotiation):
    """Answers with JSON whatever Accept says, and accepts only ``application/json`` bodies (else 415)."""

    def select_parser(self, request: Request, parsers: Iterable[BaseParser]) -> BaseParser | None:
        media_type = request.content_type.partition(";")[0].strip().lower()
        return next((parser for parser in parsers if parser.media_type == media_type), None)

    def select_renderer(
        self, request: Request, renderers: Iterable[BaseRenderer], format_suffix: str | None = None
    ) -> tuple[BaseRenderer, str]:
        renderer = next(iter(renderers))
        return renderer, renderer.media_type
