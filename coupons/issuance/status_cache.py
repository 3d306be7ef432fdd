"""The status cache: copies of terminal statuses in Redis, and the last lost requests of each user, for operators.

Only terminal statuses, since those never change.

An entry that is missing, unreadable or written by another version is a cache miss, and PostgreSQL answers. Above
STATUS_CACHE_MEMORY_PERCENT of Redis's memory nothing more is cached, since the gates are in the same Redis.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable, Sequence
from typing import Annotated
from uuid import UUID

import msgspec
from django.conf import settings
from msgspec import Meta
from redis.exceptions import RedisError, ResponseError

from common.bigint import MAX_BIGINT
from common.processes.log_limit import LogLimit
from common.redis_client import redis_connection
from common.redis_scripts import run_script

from .. import metrics, policy

logger = logging.getLogger(__name__)

# Winners come back for their coupon. Losers poll until they have the result, which takes seconds, and there are many
# times as many of them.
WON_SECONDS = 24 * 3600
LOST_SECONDS = 900

# The last requests of a user that got nothing, the latest first, 16 bytes each: no index of PostgreSQL leads to them.
RECENT_SECONDS = 24 * 3600
MOST_RECENT = 5
_ID_BYTES = 16

_PREFIX = "status:"
_RECENT_PREFIX = "recent-requests:"
# The pattern for a scan of all keys.
KEYS = f"{_PREFIX}*"
# Far above the size of any entry. A value from another writer may have up to half a gigabyte.
_MAX_ENTRY_BYTES = 4096
_MEMORY_SECONDS = 1.0
_MEMORY_BYTES = 1_000_000
_log_limit = LogLimit()


# Described for the API, not checked: an entry may hold what a newer version has added.
_Id = Annotated[int, Meta(extra_json_schema={"format": "int64", "minimum": 1, "maximum": MAX_BIGINT})]
_Time = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]
_STATUSES = [policy.PENDING, policy.SUCCESS, policy.FAILED]
_REASONS = [policy.SOLD_OUT, policy.ALREADY_ISSUED, policy.NOT_OPEN, policy.UNKNOWN_COUPON, policy.ERROR]


class RequestStatus(msgspec.Struct, frozen=True, rename="camel"):
    """A request's status; times are ISO 8601 in UTC."""

    request_id: UUID
    coupon_type: str
    user_id: _Id | None
    status: Annotated[str, Meta(extra_json_schema={"enum": _STATUSES})]
    reason: Annotated[str, Meta(extra_json_schema={"enum": _REASONS})] | None
    user_coupon_id: _Id | None
    requested_at: _Time | None
    processed_at: _Time | None


# One script call per batch: a pipeline with as many SETs takes eight times as long, because the client library handles
# every command and reply separately.
# After the statuses come the keys of their users, with an id each. Most users have no other request: the first SET is
# all then. A value of another type is replaced; an id that is known already keeps its place.
_STORE = f"""
local statuses = tonumber(ARGV[1])
for i = 1, statuses do
    redis.call('SET', KEYS[i], ARGV[2 * i + 1], 'EX', ARGV[2 * i])
end
for i = statuses + 1, #KEYS do
    local id = ARGV[statuses + 1 + i]
    local known = redis.pcall('SET', KEYS[i], id, 'EX', {RECENT_SECONDS}, 'GET')
    if type(known) == 'table' then
        redis.call('SET', KEYS[i], id, 'EX', {RECENT_SECONDS})
    elseif known then
        if not string.find(known, id, 1, true) then
            known = id .. known
        end
        redis.call('SET', KEYS[i], string.sub(known, 1, {MOST_RECENT * _ID_BYTES}), 'EX', {RECENT_SECONDS})
    end
end
"""
# A value that is not a string, or is too long for an entry, is returned as an empty string, which is unreadable.
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


class _Memory:
    """Whether Redis has room for statuses. It is measured once a second, or earlier after each megabyte written."""

    def __init__(self) -> None:
        self._checked_pool: object = None
        self._checked_at = float("-inf")
        self._bytes_written = 0
        self._has_room = True

    def has_room(self, size: int) -> bool:
        """Whether to write ``size`` bytes: not if Redis uses more of its memory than STATUS_CACHE_MEMORY_PERCENT.

        Raises RedisError.
        """
        now, pool = time.monotonic(), redis_connection().connection_pool
        is_old = now - self._checked_at >= _MEMORY_SECONDS or self._bytes_written >= _MEMORY_BYTES
        if is_old or pool is not self._checked_pool:
            self._has_room = self._measure()
            self._checked_at, self._checked_pool, self._bytes_written = now, pool, 0
        self._bytes_written += size
        return self._has_room

    def _measure(self) -> bool:
        try:
            memory = redis_connection().info("memory")
            # Without a maxmemory the machine's memory is the limit.
            limit = memory["maxmemory"] or memory["total_system_memory"]
            used = memory["used_memory"]
        except (ResponseError, KeyError) as error:
            # The Redis user may not call INFO, or a proxy does not support it.
            if _log_limit.due("memory"):
                logger.warning("the memory of Redis is unknown, statuses are cached without a limit: %s", error)
            return True
        return bool(used * 100 < limit * settings.STATUS_CACHE_MEMORY_PERCENT)


_memory = _Memory()


def write(statuses: Iterable[RequestStatus], *, as_recent: bool = False) -> int:
    """Cache terminal statuses if Redis has room for them; returns the number cached. Raises RedisError.

    ``as_recent``: a failed one also becomes the last of its user's requests that got nothing, in the same call.
    """
    keys: list[str] = []
    arguments: list[int | bytes] = []
    users: list[str] = []
    ids: list[bytes] = []
    size = 0
    for status in statuses:
        entry = encode(status)
        keys.append(_key(status.request_id))
        arguments += [seconds_kept(status.status), entry]
        size += len(entry)
        if as_recent and status.status == policy.FAILED and status.user_id is not None:
            users.append(f"{_RECENT_PREFIX}{status.user_id}")
            ids.append(status.request_id.bytes)
    size += len(ids) * _ID_BYTES
    if not keys:
        return 0
    if not _memory.has_room(size):
        metrics.STATUS_NOT_CACHED.inc(len(keys))
        if count := _log_limit.due("full", len(keys)):
            logger.warning(
                "%d statuses were not cached: Redis uses more than STATUS_CACHE_MEMORY_PERCENT (%d %%) of its memory,"
                " PostgreSQL answers instead; raise its maxmemory",
                count, settings.STATUS_CACHE_MEMORY_PERCENT,
            )  # fmt: skip
        return 0
    run_script(_STORE, keys + users, [len(keys), *arguments, *ids])
    return len(keys)


def store(statuses: Iterable[RequestStatus]) -> None:
    """Cache new terminal statuses, see ``write``. Best effort: without an entry PostgreSQL answers."""
    try:
        write(statuses, as_recent=True)
    except RedisError as error:
        logger.warning("statuses not cached, PostgreSQL answers: %s", error)


def load(request_ids: Sequence[UUID]) -> dict[UUID, RequestStatus]:
    """Return the terminal statuses that are cached and readable, in one call; none if Redis is unavailable."""
    try:
        entries = read_entries(request_ids)
    except RedisError as error:
        if count := _log_limit.due("away", len(request_ids)):
            logger.warning("status cache not read, %d times since the last line: %s", count, error)
        return {}
    found = {}
    for request_id, entry in entries.items():
        if entry is None:
            _warn_unreadable(request_id)
        else:
            found[request_id] = entry
    return found


def read_entries(request_ids: Sequence[UUID]) -> dict[UUID, RequestStatus | None]:
    """Return the entries of ``request_ids`` by id, without those that have none; None for an unreadable entry.

    Raises RedisError.
    """
    if not request_ids:
        return {}
    keys = [_key(request_id) for request_id in request_ids]
    raw = run_script(_READ_MANY, keys, [_MAX_ENTRY_BYTES])
    return {id_: _decode(id_, entry) for id_, entry in zip(request_ids, raw, strict=True) if entry is not None}


def recent_requests(user_id: int) -> list[UUID]:
    """Return the ids of the last requests of a user that got nothing, of a day, at most five, the latest first.

    Raises RedisError. Requests whose statuses were not cached are missing, and so is everything that Redis lost.
    """
    raw = redis_connection().getrange(f"{_RECENT_PREFIX}{user_id}", 0, MOST_RECENT * _ID_BYTES - 1)
    ids = [raw[start : start + _ID_BYTES] for start in range(0, len(raw), _ID_BYTES)]
    return [UUID(bytes=one) for one in ids if len(one) == _ID_BYTES]


def remove_keys(names: Collection[bytes]) -> None:
    """Remove keys by name. Raises RedisError."""
    if names:
        redis_connection().unlink(*names)


def encode(status: RequestStatus) -> bytes:
    """Encode a status as the value of its entry."""
    return _encoder.encode(status)


def seconds_kept(status: str) -> int:
    """Return the seconds for which a terminal status is cached."""
    return WON_SECONDS if status == policy.SUCCESS else LOST_SECONDS


def _decode(request_id: UUID, raw: bytes) -> RequestStatus | None:
    try:
        found = _decoder.decode(raw)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    if found.request_id != request_id or found.status not in (policy.SUCCESS, policy.FAILED):
        return None
    return found


def _warn_unreadable(request_id: UUID) -> None:
    # Not removed: a newer version may have written it for its own use. The reconciler compares it with PostgreSQL.
    if count := _log_limit.due("unreadable"):
        logger.warning(
            "%d cached statuses cannot be read, PostgreSQL answers; `reconcile --repair` rewrites them. The last is"
            " that of request %s",
            count, request_id,
        )  # fmt: skip


def request_of_key(name: bytes) -> UUID | None:
    """Return the id of the request whose entry has this key; None for a key of no request."""
    try:
        text = name.decode().removeprefix(_PREFIX)
        request_id = UUID(text)
    except ValueError:
        return None
    # A different spelling of the same UUID is a different key.
    return request_id if str(request_id) == text else None


def _key(request_id: UUID) -> str:
    # A quarter of the time of str(), for the same text.
    return f"{_PREFIX}{msgspec.to_builtins(request_id)}"
