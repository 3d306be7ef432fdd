"""Events on the wire: CloudEvents headers in binary mode, and JSON bodies."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping
from typing import Any

import msgspec

SOURCE = b"/coupon-service"


def encode_body(body: Mapping[str, Any] | msgspec.Struct) -> bytes:
    """The bytes of a message body: compact UTF-8 JSON in the order given."""
    return msgspec.json.encode(body)


Headers = tuple[tuple[str, bytes | None], ...]


# Bytes are base64 in JSON, for msgspec as for ``encode_headers``.
_stored_headers = msgspec.json.Decoder(Headers)


def encode_headers(headers: Headers) -> bytes:
    """Message headers as ASCII JSON ``[[name, base64 or null], ...]``: any bytes survive the way."""
    return json.dumps(
        [[name, None if value is None else b64encode(value).decode()] for name, value in headers]
    ).encode()


# The name under which stored headers that cannot be read go on, as they are stored.
UNREADABLE_HEADERS = "x-unreadable-headers"


def decode_headers(stored: bytes) -> Headers:
    """What ``encode_headers`` stored; anything else as the one header ``UNREADABLE_HEADERS``.

    So a damaged row is published and shown, and its reader sees what is wrong with it.
    """
    try:
        return _stored_headers.decode(stored)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return ((UNREADABLE_HEADERS, stored),)


def cloud_event_headers(
    *, event_id: str, event_type: str, time: str, traceparent: str
) -> list[tuple[str, str | bytes | None]]:
    """The headers of an event in CloudEvents' binary mode (CloudEvents 1.0, Kafka protocol binding 3.2)."""
    headers: list[tuple[str, str | bytes | None]] = [
        ("ce_id", event_id),
        ("ce_type", event_type),
        ("ce_source", SOURCE),
        ("ce_specversion", "1.0"),
        ("ce_time", time),
        ("content-type", "application/json"),
    ]
    if traceparent:
        headers.append(("traceparent", traceparent))
    return headers
