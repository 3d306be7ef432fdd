"""The ranking in Redis: per day the quantity sold of each product, and the ids of the events counted.

The ids are the inbox of the ranking. One script changes them together with the quantities, so an event is counted once
even if the process dies before it writes its inbox row in PostgreSQL.

Redis may be flushed at any time. The key ``ranking:loaded`` marks the ranking as complete; without it nothing is
counted or read. A rebuild holds the key ``ranking:rebuilding``, and while that exists nothing is counted: an event
counted before was committed before, so the rebuild reads it; a later event is either among the ids that the rebuild
stores, or new.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import date, timedelta
from typing import Any
from uuid import UUID, uuid4

import msgspec
from django.conf import settings
from redis.exceptions import RedisError

from common.bigint import MAX_BIGINT
from common.processes.log_limit import LogLimit
from common.processes.outages import ServiceUnavailable
from common.redis_client import redis_connection
from common.redis_scripts import run_script

from .days import start_of
from .sales import Sale

logger = logging.getLogger(__name__)

_limit = LogLimit()

# The longest window that the API serves.
MAX_DAYS = 30
# A rebuild loads one more day: the window moves at midnight.
REBUILT_DAYS = MAX_DAYS + 1
_KEPT_DAYS = 40

_LOADED = "ranking:loaded"
_REBUILDING = "ranking:rebuilding"

# How long the flag of a killed rebuild stays; a running rebuild renews it at every step.
REBUILDING_SECONDS = 60
# How long the staged keys of a killed rebuild stay. A rebuild that takes longer fails.
_STAGING_SECONDS = 6 * 3600

# KEYS: loaded, rebuilding, then quantities and events of each day. ARGV: see _count. A day key of the wrong type
# invalidates the whole ranking, which is then rebuilt; otherwise every event of that day would fail.
_UNLESS_REBUILDING = """
if redis.call('TTL', KEYS[2]) == -1 then
    redis.call('UNLINK', KEYS[2])
end
if redis.call('EXISTS', KEYS[2]) == 1 then
    return -1
end
if redis.pcall('GET', KEYS[1]) ~= ARGV[1] then
    return -2
end
for index = 3, #KEYS do
    local kind = redis.call('TYPE', KEYS[index]).ok
    if kind ~= 'none' and kind ~= (index % 2 == 1 and 'zset' or 'set') then
        redis.call('UNLINK', KEYS[1], KEYS[index])
        return -2
    end
end
"""
# The flag of a rebuild always has a TTL, so a key without one is not such a flag.
_BEGIN = """
if redis.call('TTL', KEYS[1]) == -1 then
    redis.call('UNLINK', KEYS[1])
end
return redis.call('SET', KEYS[1], ARGV[1], 'NX', 'EX', ARGV[2])
"""
# KEYS: as above, for the staged ranking. ARGV[1]: the token of its rebuild.
_WHILE_REBUILDING = """
if redis.call('GET', KEYS[2]) ~= ARGV[1] then
    return -1
end
"""
_COUNT = """
local counted = 0
for _, sale in ipairs(cjson.decode(ARGV[2])) do
    local index, event_id, quantities = unpack(sale)
    if redis.call('SADD', KEYS[index + 1], event_id) == 1 then
        counted = counted + 1
        for product, quantity in pairs(quantities) do
            if tonumber(redis.call('ZINCRBY', KEYS[index], quantity, product)) == 0 then
                redis.call('ZREM', KEYS[index], product)
            end
        end
    end
end
for index = 3, #KEYS do
    redis.call(ARGV[3], KEYS[index], ARGV[index + 1])
end
return counted
"""
_RENEW = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
    return 0
end
return redis.call('EXPIRE', KEYS[1], ARGV[2])
"""
_RELEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then
    redis.call('DEL', KEYS[1])
end
"""
# KEYS: loaded, rebuilding, the sentinel, then pairs of a staged key and the live key it replaces. ARGV: marker, token,
# then the expiry time of each pair.
_SWAP = """
if redis.call('GET', KEYS[2]) ~= ARGV[2] or redis.call('EXISTS', KEYS[3]) == 0 then
    return 0
end
for index = 4, #KEYS, 2 do
    redis.call('UNLINK', KEYS[index + 1])
    if redis.call('EXISTS', KEYS[index]) == 1 then
        redis.call('RENAME', KEYS[index], KEYS[index + 1])
        redis.call('EXPIREAT', KEYS[index + 1], ARGV[index / 2 + 1])
    end
end
redis.call('SET', KEYS[1], ARGV[1])
redis.call('DEL', KEYS[2], KEYS[3])
return 1
"""
# Returns only the best `limit` products and those tied with the last of them.
_BEST = """
if redis.pcall('GET', KEYS[1]) ~= ARGV[1] then
    return false
end
local command = {'ZUNION', #KEYS - 1}
for index = 2, #KEYS do
    command[index + 1] = KEYS[index]
end
command[#command + 1] = 'WITHSCORES'
local all = redis.pcall(unpack(command))
if all.err then
    return false
end
local limit, best = tonumber(ARGV[2]), {}
for index = #all, 2, -2 do
    local quantity = all[index]
    if tonumber(quantity) <= 0 or (#best >= 2 * limit and quantity ~= best[2 * limit]) then
        break
    end
    best[#best + 1] = all[index - 1]
    best[#best + 1] = quantity
end
return best
"""


class NotLoaded(Exception):
    """Redis has no complete ranking: it was flushed, or never had one."""


class BeingRebuilt(ServiceUnavailable):
    """The ranking is being rebuilt."""


class RebuildLost(ServiceUnavailable):
    """The rebuild lost its flag or its staged keys: too slow, or Redis was flushed. The ranking is unchanged."""


def count(sales: Sequence[Sale]) -> int:
    """Count the new events of ``sales`` in one script call; returns how many were new.

    Raises NotLoaded or BeingRebuilt, with nothing counted, and the errors of redis.
    """
    days = sorted({sale.day for sale in sales})
    expire_at = {day: int(start_of(day + timedelta(days=1 + _KEPT_DAYS)).timestamp()) for day in days}
    counted = _count(_UNLESS_REBUILDING, _marker(), sales, _live_key, "EXPIREAT", expire_at)
    if counted == -1:
        raise BeingRebuilt("the ranking is being rebuilt; nothing is counted until the rebuild has finished")
    if counted == -2:
        raise NotLoaded
    return counted


def best(days: Sequence[date], limit: int) -> list[tuple[int, int]] | None:
    """Return (product id, quantity) of the ``limit`` best sellers on ``days``, best first; ties are sorted by id.

    None if Redis has no complete ranking, or an unreadable one. Raises the errors of redis.
    """
    keys = [_LOADED, *(_live_key("quantities", day) for day in days)]
    flat = run_script(_BEST, keys, [_marker(), limit])
    if flat is None:
        return None
    try:
        found = [(int(product), int(float(quantity))) for product, quantity in zip(flat[::2], flat[1::2], strict=True)]
    except (ValueError, OverflowError):
        found = [(0, 0)]
    if not all(0 < number <= MAX_BIGINT for row in found for number in row):
        if number := _limit.due("unreadable"):
            logger.warning(
                "the ranking in Redis is unreadable, %d times since the last line; it will be rebuilt", number
            )
        return None
    return sorted(found, key=lambda row: (-row[1], row[0]))[:limit]


class Staging:
    """The staged ranking of a rebuild, beside the live one. Created by ``rebuilding``."""

    def __init__(self, token: str) -> None:
        self._token = token
        # Set before any staged key and with the same TTL: while it exists, no staged key has expired.
        self._sentinel = f"ranking:staging:{token}"
        self._staged = {self._sentinel}

    def begin(self) -> None:
        """Stop consumers from counting. Raises BeingRebuilt if another rebuild runs."""
        if not run_script(_BEGIN, [_REBUILDING], [self._token, REBUILDING_SECONDS]):
            raise BeingRebuilt(
                f"the ranking is already being rebuilt; wait until that rebuild finishes, at most {REBUILDING_SECONDS}"
                " s if it was killed, and run it again"
            )
        redis_connection().set(self._sentinel, "", ex=_STAGING_SECONDS)

    def end(self) -> None:
        """Let consumers count again, and delete the staged keys that were not swapped in."""
        run_script(_RELEASE, [_REBUILDING], [self._token])
        redis_connection().unlink(*self._staged)

    def add(self, day: date, quantities: Mapping[int, int], event_ids: Iterable[UUID]) -> None:
        """Add to a day without checking the ids: the caller must add nothing twice. Raises RebuildLost."""
        self.renew()
        pipeline = redis_connection().pipeline(transaction=False)
        if quantities:
            pipeline.zadd(self._key("quantities", day), {str(product): sold for product, sold in quantities.items()})
            pipeline.expire(self._key("quantities", day), _STAGING_SECONDS)
        if members := [event_id.hex for event_id in event_ids]:
            pipeline.sadd(self._key("events", day), *members)
            pipeline.expire(self._key("events", day), _STAGING_SECONDS)
        pipeline.execute()

    def count(self, sales: Sequence[Sale]) -> int:
        """Count the new events of ``sales`` in the staged ranking; returns how many were new. Raises RebuildLost."""
        self.renew()
        expire = dict.fromkeys(sorted({sale.day for sale in sales}), _STAGING_SECONDS)
        counted = _count(_WHILE_REBUILDING, self._token, sales, self._key, "EXPIRE", expire)
        if counted < 0:
            raise _lost()
        return counted

    def renew(self) -> None:
        """Extend the flag that stops consumers from counting. Raises RebuildLost."""
        if not run_script(_RENEW, [_REBUILDING], [self._token, REBUILDING_SECONDS]):
            raise _lost()

    def swap(self, days: Sequence[date]) -> None:
        """Replace ``days`` of the live ranking by the staged ones, and let consumers count. Raises RebuildLost."""
        keys, expire_at = [_LOADED, _REBUILDING, self._sentinel], []
        for day in days:
            for kind in ("quantities", "events"):
                keys += [self._key(kind, day), _live_key(kind, day)]
                expire_at.append(int(start_of(day + timedelta(days=1 + _KEPT_DAYS)).timestamp()))
        if not run_script(_SWAP, keys, [_marker(), self._token, *expire_at]):
            raise _lost()

    def _key(self, kind: str, day: date) -> str:
        key = f"ranking:staging:{self._token}:{kind}:{day}"
        self._staged.add(key)
        return key


@contextmanager
def rebuilding() -> Iterator[Staging]:
    """Stop counting within the context; staged keys that are not swapped in are deleted at exit. Raises BeingRebuilt.

    The source must be read within the context: PostgreSQL, or the end offsets of the topics.
    """
    staging = Staging(uuid4().hex)
    try:
        staging.begin()
        yield staging
    finally:
        # If Redis fails here, or the process is killed, the keys expire.
        with suppress(RedisError):
            staging.end()


def _count(guard: str, expected: str, sales: Sequence[Sale], key: Any, expire: str, expiry: Mapping[date, int]) -> int:
    """Run ``guard`` with ``expected``, then count; ``expiry`` is the argument of the command ``expire`` per day."""
    key_indexes = {day: 3 + 2 * number for number, day in enumerate(expiry)}
    keys = [_LOADED, _REBUILDING, *(key(kind, day) for day in expiry for kind in ("quantities", "events"))]
    body = [
        (key_indexes[sale.day], sale.event_id.hex, {str(product): sold for product, sold in sale.quantities.items()})
        for sale in sales
    ]
    expiries = [value for value in expiry.values() for _ in range(2)]
    args = [expected, msgspec.json.encode(body), expire, *expiries]
    return int(run_script(guard + _COUNT, keys, args))


def _lost() -> RebuildLost:
    return RebuildLost("another rebuild ran, or Redis was flushed: the ranking is unchanged, run it again")


def _marker() -> str:
    """The required value of ``ranking:loaded``: another time zone has other days, so its ranking is unusable."""
    return f"v1 {settings.BUSINESS_TIME_ZONE}"


def _live_key(kind: str, day: date) -> str:
    return f"ranking:{kind}:{day}"
