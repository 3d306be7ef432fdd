"""The status cache: terminal answers of requests in Redis, and nothing else, so that none of it can become wrong.

An entry is no more than a copy: one that is missing, unreadable or written by another version is a miss, and PostgreSQL
answers. The share of Redis's memory past which nothing more is cached is bounded, since gates live there too.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, Final
from uuid import UUID

import msgspec
from django.conf import settings
from redis.exceptions import RedisError, ResponseError

from common.processes.log_limit import LogLimit
from common.redis_client import redis_connection

from .. import metrics, policy

logger = logging.getLogger(__name__)

# Winners come back for their coupon; losers ask until they know, which takes seconds, and are many times as many.
WON_SECONDS = 24 * 3600
LOST_SECONDS = 900

_PREFIX = "status:"
# No entry is nearly as long, and what others put there may be half a gigabyte.
_LONGEST = 4096
_MEMORY_SECONDS = 1.0
_MEMORY_BYTES = 1_000_000
_SCAN_COUNT = 1000
_limit = LogLimit()


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
    redis.call('SET', KEYS[i], ARGV[2 * i], 'EX', ARGV[2 * i - 1])
end
"""
# What is no text, or too long to be an entry, is an empty text, which no reader takes for one.
_READ_MANY = """
local found = {}
for i = 1, #KEYS do
    local kind = redis.call('TYPE', KEYS[i]).ok
    if kind == 'none' then
        found[i] = false
    elseif kind == 'string' and redis.call('STRLEN', KEYS[i]) <= tonumber(ARGV[1]) then
        found[i] = redis.call('GET', KEYS[i])
    else
        found[i] = ''
    end
end
return found
"""
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(RequestStatus)


class Unreadable:
    """An entry that is no status of its request."""


UNREADABLE: Final = Unreadable()


class _Memory:
    """Whether there is room for statuses in Redis, asked once a second, or sooner after a megabyte of them."""

    def __init__(self) -> None:
        self._asked_of: object = None
        self._asked_at = float("-inf")
        self._written = 0
        self._has_room = True

    def has_room(self, size: int) -> bool:
        """Whether to write ``size`` bytes: not once Redis uses more of its memory than STATUS_CACHE_MEMORY_PERCENT.

        Raises RedisError.
        """
        now, pool = time.monotonic(), redis_connection().connection_pool
        is_old = now - self._asked_at >= _MEMORY_SECONDS or self._written >= _MEMORY_BYTES
        if is_old or pool is not self._asked_of:
            self._has_room = self._ask()
            self._asked_at, self._asked_of, self._written = now, pool, 0
        self._written += size
        return self._has_room

    def _ask(self) -> bool:
        try:
            memory = redis_connection().info("memory")
            # Without a maxmemory the machine's is the limit.
            most = memory["maxmemory"] or memory["total_system_memory"]
            used = memory["used_memory"]
        except (ResponseError, KeyError) as error:
            # A user that may not ask, or a proxy.
            if _limit.due("memory"):
                logger.warning("the memory of Redis is not known, statuses are cached without a bound: %s", error)
            return True
        return bool(used * 100 < most * settings.STATUS_CACHE_MEMORY_PERCENT)


_memory = _Memory()


def write(statuses: Iterable[RequestStatus]) -> int:
    """Cache terminal statuses, unless there is no room for them; returns how many. Raises RedisError."""
    keys: list[str] = []
    arguments: list[int | bytes] = []
    size = 0
    for status in statuses:
        entry = encode(status)
        keys.append(_key(status.request_id))
        arguments += [seconds_kept(status.status), entry]
        size += len(entry)
    if not keys:
        return 0
    if not _memory.has_room(size):
        metrics.STATUS_NOT_CACHED.inc(len(keys))
        if number := _limit.due("full", len(keys)):
            logger.warning(
                "%d statuses were not cached: Redis uses more than STATUS_CACHE_MEMORY_PERCENT (%d %%) of its memory,"
                " PostgreSQL answers instead; raise its maxmemory",
                number, settings.STATUS_CACHE_MEMORY_PERCENT,
            )  # fmt: skip
        return 0
    _redis().register_script(_STORE)(keys=keys, args=arguments)
    return len(keys)


def store(statuses: Iterable[RequestStatus]) -> None:
    """Like ``write`` at best effort: PostgreSQL stands behind."""
    try:
        write(statuses)
    except RedisError as error:
        logger.warning("status view not written, reads fall back to PostgreSQL: %s", error)


def load(request_id: UUID) -> RequestStatus | None:
    """The terminal status, None if it is not here, cannot be read, or Redis is away: ask PostgreSQL then."""
    try:
        # Of a text however long only as much as an entry can be.
        raw = _redis().getrange(_key(request_id), 0, _LONGEST)
    except ResponseError as error:
        _warn_unreadable(request_id, str(error))
        return None
    except RedisError as error:
        if number := _limit.due("away"):
            logger.warning("status view not read, %d times since the last line: %s", number, error)
        return None
    if not raw:
        return None
    found = _decode(request_id, raw)
    if isinstance(found, Unreadable):
        _warn_unreadable(request_id, "no status of that request")
        return None
    return found


def load_many(request_ids: Sequence[UUID]) -> dict[UUID, RequestStatus | Unreadable]:
    """The entries of those of ``request_ids`` that have one. Raises RedisError."""
    if not request_ids:
        return {}
    keys = [_key(request_id) for request_id in request_ids]
    raw = _redis().register_script(_READ_MANY)(keys=keys, args=[_LONGEST])
    return {id_: _decode(id_, entry) for id_, entry in zip(request_ids, raw, strict=True) if entry is not None}


def remove(request_ids: Collection[UUID]) -> None:
    """Take entries away. Raises RedisError."""
    remove_keys([_key(request_id).encode() for request_id in request_ids])


def remove_keys(names: Collection[bytes]) -> None:
    """Take keys away. Raises RedisError."""
    if names:
        _redis().unlink(*names)


class Scan:
    """A walk over all keys of Redis in search of entries; it goes on where the last step ended."""

    def __init__(self) -> None:
        self._cursor = 0

    def step(self, calls: int | None) -> Iterator[tuple[list[UUID], list[bytes]]]:
        """(requests that have an entry, keys of no request) of that many calls, or (None) of all. Raises RedisError."""
        while calls is None or calls > 0:
            self._cursor, names = _redis().scan(self._cursor, match=f"{_PREFIX}*", count=_SCAN_COUNT)
            if names:
                requests = {name: _request_id(name) for name in names}
                foreign = [name for name, request_id in requests.items() if request_id is None]
                yield [request_id for request_id in requests.values() if request_id is not None], foreign
            if not self._cursor:
                return
            calls = None if calls is None else calls - 1


def encode(status: RequestStatus) -> bytes:
    """A status as its entry holds it."""
    return _encoder.encode(status)


def seconds_kept(status: str) -> int:
    """How long a terminal status is cached."""
    return WON_SECONDS if status == policy.SUCCESS else LOST_SECONDS


def _decode(request_id: UUID, raw: bytes) -> RequestStatus | Unreadable:
    try:
        found = _decoder.decode(raw)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return UNREADABLE
    if found.request_id != request_id or found.status not in (policy.SUCCESS, policy.FAILED):
        return UNREADABLE
    return found


def _warn_unreadable(request_id: UUID, what: str) -> None:
    # Not removed: a newer version may have written it, for itself. The reconciler decides by PostgreSQL.
    if number := _limit.due("unreadable"):
        logger.warning(
            "%d cached statuses cannot be read, PostgreSQL answers; `reconcile --repair` writes them anew. The last is"
            " that of request %s: %s",
            number, request_id, what,
        )  # fmt: skip


def _request_id(name: bytes) -> UUID | None:
    try:
        text = name.decode().removeprefix(_PREFIX)
        request_id = UUID(text)
    except ValueError:
        return None
    # Other spellings of an id are other keys.
    return request_id if str(request_id) == text else None


def _redis() -> Any:
    return redis_connection()


def _key(request_id: UUID) -> str:
    return f"{_PREFIX}{request_id}"
