"""What Redis says of itself, for the pages of operators."""

from __future__ import annotations

from typing import NamedTuple

from django.core.cache import caches
from redis.exceptions import RedisError

from common.processes.lifecycle import first_line
from common.redis_client import redis_connection

_ROLES = {"master": "primary", "slave": "replica"}
# A page that refreshes itself waits for a frozen Redis at most once in so long, per process.
_ERROR_SECONDS = 5
_ERROR_KEY = "ops-redis-error"


class RedisState(NamedTuple):
    """What Redis says of itself; ``limit_bytes`` None: no maxmemory is set."""

    role: str
    used_bytes: int
    limit_bytes: int | None
    policy: str
    evicted_keys: int
    clients: int

    @property
    def used_percent(self) -> int | None:
        return None if self.limit_bytes is None else round(100 * self.used_bytes / self.limit_bytes)


class RedisGlance(NamedTuple):
    """``state`` None: Redis does not answer, ``error`` says why in one line."""

    state: RedisState | None
    error: str = ""


def redis_glance() -> RedisGlance:
    """Return the state of Redis or its error; an error is believed for five seconds, in which Redis is not asked."""
    memory = caches["process"]
    if (error := memory.get(_ERROR_KEY)) is not None:
        return RedisGlance(None, error)
    try:
        return RedisGlance(redis_state())
    except RedisError as failure:
        error = first_line(failure)
        memory.set(_ERROR_KEY, error, _ERROR_SECONDS)
        return RedisGlance(None, error)


def redis_state() -> RedisState:
    """Ask Redis for its state, in one call. Raises RedisError."""
    info = redis_connection().info()
    return RedisState(
        role=_ROLES.get(info.get("role"), "of unknown role"),
        used_bytes=int(info.get("used_memory", 0)),
        limit_bytes=int(info.get("maxmemory", 0)) or None,
        policy=str(info.get("maxmemory_policy", "unknown")),
        evicted_keys=int(info.get("evicted_keys", 0)),
        clients=int(info.get("connected_clients", 0)),
    )
