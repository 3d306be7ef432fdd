"""Encoding of events: CloudEvents headers in binary mode, and JSON bodies."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping
from typing import Any

import msgspec
from django.conf import settings


def encode_body(body: Mapping[str, Any] | msgspec.Struct) -> bytes:
    """Encode a message body: compact UTF-8 JSON, fields in the given order."""
    return msgspec.json.encode(body)


Headers = tuple[tuple[str, bytes | None], ...]


# Bytes are base64 in JSON, for msgspec as for ``encode_headers``.
_stored_headers = msgspec.json.Decoder(Headers)


def encode_headers(headers: Headers) -> bytes:
    """Encode message headers as ASCII JSON ``[[name, base64 or null], ...]``, which keeps any bytes."""
    return json.dumps(
        [[name, None if value is None else b64encode(value).decode()] for name, value in headers]
    ).encode()


# Name of the header that carries stored headers which cannot be decoded, unchanged.
UNREADABLE_HEADERS = "x-unreadable-headers"


def decode_headers(stored: bytes) -> Headers:
    """Decode what ``encode_headers`` stored; anything else becomes the one header ``UNREADABLE_HEADERS``.

    So a damaged row is still published and shown, and its reader sees the damage.
    """
    try:
        return _stored_headers.decode(stored)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return ((UNREADABLE_HEADERS, stored),)


def cloud_event_headers(
    *, event_id: str, event_type: str, time: str, traceparent: str
) -> list[tuple[str, str | bytes | None]]:
    """Build the headers of an event in binary mode (CloudEvents 1.0, Kafka protocol binding 3.2).

    ``time`` is ISO 8601; an empty ``traceparent`` is left out.
    """
    headers: list[tuple[str, str | bytes | None]] = [
        ("ce_id", event_id),
        ("ce_type", event_type),
        ("ce_source", settings.EVENT_SOURCE.encode()),
        ("ce_specversion", "1.0"),
        ("ce_time", time),
        ("content-type", "application/json"),
    ]
    if traceparent:
        headers.append(("traceparent", traceparent))
    return headers
