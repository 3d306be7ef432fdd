"""JSON answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from django.utils.functional import Promise
from rest_framework.renderers import BaseRenderer


def _plain(value: Any) -> Any:
    # Lazy translations and marked-safe text are texts to everyone but the encoder.
    if isinstance(value, str | Promise):
        return str.__str__(value) if isinstance(value, str) else str(value)
    raise NotImplementedError(f"{type(value).__name__} has no place in an answer")


_encoder = msgspec.json.Encoder(enc_hook=_plain)


def encode(data: Any) -> bytes:
    """JSON of plain values, msgspec Structs, UUIDs, and datetimes (ISO 8601, ``Z`` for those in UTC)."""
    return _encoder.encode(data)


class JSONRenderer(BaseRenderer):
    media_type = "application/json"
    format = "json"
    charset = None

    def render(
        self,
        data: Any,
        accepted_media_type: str | None = None,
        renderer_context: Mapping[str, Any] | None = None,
    ) -> bytes:
        return b"" if data is None else encode(data)
