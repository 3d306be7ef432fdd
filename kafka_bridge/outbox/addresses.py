"""Topic and key that the present routes give to an event that was written under earlier routes."""

from __future__ import annotations

from typing import NamedTuple

import msgspec
from django.conf import settings

from ..routes import Route


class Address(NamedTuple):
    """Topic (without the prefix) and message key of an event."""

    topic: str
    key: bytes | None


def present_address(event_type: str, topic: str, key: bytes | None, payload: bytes | None) -> Address:
    """Return where the route of ``event_type`` sends the event now; ``topic`` and ``key`` if it still names ``topic``.

    A type without a route keeps its address. A body without the route's key field keeps its key.
    """
    route: Route | None = settings.KAFKA_ROUTES.get(event_type)
    if route is None or route.topic == topic:
        return Address(topic, key)
    try:
        body = msgspec.json.decode(payload or b"")
    except (msgspec.MsgspecError, ValueError, RecursionError):
        body = None
    has_field = isinstance(body, dict) and route.key_field in body
    return Address(route.topic, route.key_of(body[route.key_field]) if has_field else key)
