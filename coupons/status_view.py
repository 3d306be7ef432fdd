"""The read side of results in Redis: terminal answers only, so that nothing in it can become wrong."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any
from uuid import UUID

import msgspec
from django_redis import get_redis_connection
from redis.exceptions import RedisError

logger = logging.getLogger(__name__)

TTL_SECONDS = 24 * 3600


class RequestStatus(msgspec.Struct, frozen=True, rename="camel"):
    """A request's status as the API tells it; times are ISO 8601 in UTC."""

    request_id: UUID
    coupon_type: str
    user_id: int | None
    status: str
    reason: str | None
    user_coupon_id: int | None
    requested_at: str | None
    processed_at: str | None


# One call for a batch: of a pipeline with as many SETs, the client library's handling of every single command and
# answer takes eight times as long.
_STORE = """
for i = 1, #KEYS do
    redis.call('SET', KEYS[i], ARGV[i + 1], 'EX', ARGV[1])
end
"""
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(RequestStatus)


def write(statuses: Iterable[RequestStatus]) -> None:
    """Make terminal statuses readable from Redis. Raises RedisError."""
    keys, views = [], []
    for status in statuses:
        keys.append(_key(status.request_id))
        views.append(_encoder.encode(status))
    if keys:
        _redis().register_script(_STORE)(keys=keys, args=[TTL_SECONDS, *views])


def store(statuses: Iterable[RequestStatus]) -> None:
    """Like ``write`` at best effort: PostgreSQL stands behind."""
    try:
        write(statuses)
    except RedisError as error:
        logger.warning("status view not written, reads fall back to PostgreSQL: %s", error)


def load(request_id: UUID) -> RequestStatus | None:
    """The terminal status, None if it is not here (or Redis is away): ask PostgreSQL then."""
    try:
        raw = _redis().get(_key(request_id))
    except RedisError as error:
        logger.warning("status view not read: %s", error)
        return None
    return _decoder.decode(raw) if raw else None


def _redis() -> Any:
    return get_redis_connection("default")


def _key(request_id: UUID) -> str:
    return f"status:{request_id}"
