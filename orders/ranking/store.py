"""The ranking in Redis: for each day what was sold of each product, and the ids of the events that were counted.

The ids are the inbox of the ranking. They lie beside the quantities and change with them in one script, so whoever dies
before the row in PostgreSQL is written counts an event once all the same.

Redis may be emptied at any time. ``ranking:loaded`` tells that what is here is complete; without it nothing is counted
and nothing is read. A rebuild holds ``ranking:rebuilding`` meanwhile, and while that exists nothing is counted: what
was counted before was committed before, so it is in what the rebuild reads; what comes later is either among the ids
that it brings along or new.
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

from common.processes.log_limit import LogLimit
from common.processes.outages import ServiceUnavailable
from common.redis_client import redis_connection

from .days import start_of
from .sales import Sale

logger = logging.getLogger(__name__)

_limit = LogLimit()
_LARGEST = 2**63 - 1

# The most days that anybody can ask for.
MAX_DAYS = 30
# A rebuild brings one more: the window of those who ask moves on at midnight.
REBUILT_DAYS = MAX_DAYS + 1
_KEPT_DAYS = 40

_LOADED = "ranking:loaded"
_REBUILDING = "ranking:rebuilding"

# How long the flag of a rebuild that was killed stays; a living one renews it with every step.
REBUILDING_SECONDS = 60
# How long what a killed rebuild has gathered stays. No rebuild may take longer.
_STAGING_SECONDS = 6 * 3600

# KEYS: loaded, rebuilding, then quantities and events of each day. ARGV: see _count. A day under whose name there is
# something else takes the whole ranking with it: it is rebuilt, or every event of that day would fail.
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
for place = 3, #KEYS do
    local kind = redis.call('TYPE', KEYS[place]).ok
    if kind ~= 'none' and kind ~= (place % 2 == 1 and 'zset' or 'set') then
        redis.call('UNLINK', KEYS[1], KEYS[place])
        return -2
    end
end
"""
# The flag of a rebuild always runs out, so one that does not is something else.
_BEGIN = """
if redis.call('TTL', KEYS[1]) == -1 then
    redis.call('UNLINK', KEYS[1])
end
return redis.call('SET', KEYS[1], ARGV[1], 'NX', 'EX', ARGV[2])
"""
# KEYS: as above, for a ranking in the making. ARGV[1]: the token of its rebuild.
_WHILE_REBUILDING = """
if redis.call('GET', KEYS[2]) ~= ARGV[1] then
    return -1
end
"""
_COUNT = """
local counted = 0
for _, sale in ipairs(cjson.decode(ARGV[2])) do
    local place, event_id, quantities = unpack(sale)
    if redis.call('SADD', KEYS[place + 1], event_id) == 1 then
        counted = counted + 1
        for product, quantity in pairs(quantities) do
            if tonumber(redis.call('ZINCRBY', KEYS[place], quantity, product)) == 0 then
                redis.call('ZREM', KEYS[place], product)
            end
        end
    end
end
for place = 3, #KEYS do
    redis.call(ARGV[3], KEYS[place], ARGV[place + 1])
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
# KEYS: loaded, rebuilding, the proof, then pairs of a staged key and the one it replaces. ARGV: marker, token, and at
# the place of each pair when it expires.
_SWAP = """
if redis.call('GET', KEYS[2]) ~= ARGV[2] or redis.call('EXISTS', KEYS[3]) == 0 then
    return 0
end
for place = 4, #KEYS, 2 do
    redis.call('UNLINK', KEYS[place + 1])
    if redis.call('EXISTS', KEYS[place]) == 1 then
        redis.call('RENAME', KEYS[place], KEYS[place + 1])
        redis.call('EXPIREAT', KEYS[place + 1], ARGV[place / 2 + 1])
    end
end
redis.call('SET', KEYS[1], ARGV[1])
redis.call('DEL', KEYS[2], KEYS[3])
return 1
"""
# Only what is needed leaves Redis: the best, and all that share the quantity of the last of them.
_BEST = """
if redis.pcall('GET', KEYS[1]) ~= ARGV[1] then
    return false
end
local command = {'ZUNION', #KEYS - 1}
for place = 2, #KEYS do
    command[place + 1] = KEYS[place]
end
command[#command + 1] = 'WITHSCORES'
local all = redis.pcall(unpack(command))
if all.err then
    return false
end
local limit, best = tonumber(ARGV[2]), {}
for place = #all, 2, -2 do
    local quantity = all[place]
    if tonumber(quantity) <= 0 or (#best >= 2 * limit and quantity ~= best[2 * limit]) then
        break
    end
    best[#best + 1] = all[place - 1]
    best[#best + 1] = quantity
end
return best
"""


class NotLoaded(Exception):
    """Redis has no complete ranking: it was emptied, or never had one."""


class BeingRebuilt(ServiceUnavailable):
    """The ranking is being rebuilt."""


class RebuildLost(ServiceUnavailable):
    """A rebuild was too slow, or Redis was emptied meanwhile; the ranking is as it was."""


def count(sales: Sequence[Sale]) -> int:
    """Count those of ``sales`` that are new, in one call; returns how many were.

    Raises NotLoaded or BeingRebuilt, with nothing counted, and the errors of redis.
    """
    days = sorted({sale.day for sale in sales})
    expire_at = {day: int(start_of(day + timedelta(days=1 + _KEPT_DAYS)).timestamp()) for day in days}
    counted = _count(_UNLESS_REBUILDING, _marker(), sales, _live_key, "EXPIREAT", expire_at)
    if counted == -1:
        raise BeingRebuilt("the ranking is being rebuilt; nothing is counted until that has ended")
    if counted == -2:
        raise NotLoaded
    return counted


def best(days: Sequence[date], limit: int) -> list[tuple[int, int]] | None:
    """(product id, quantity) of the ``limit`` products sold best on ``days``, best first and by id among equals.

    None if Redis has no complete ranking, or one that cannot be read. Raises the errors of redis.
    """
    keys = [_LOADED, *(_live_key("quantities", day) for day in days)]
    flat = _redis().register_script(_BEST)(keys=keys, args=[_marker(), limit])
    if flat is None:
        return None
    try:
        found = [(int(product), int(float(quantity))) for product, quantity in zip(flat[::2], flat[1::2], strict=True)]
    except (ValueError, OverflowError):
        found = [(0, 0)]
    if not all(0 < number <= _LARGEST for row in found for number in row):
        if number := _limit.due("unreadable"):
            logger.warning("the ranking in Redis cannot be read, %d times since the last line; it is rebuilt", number)
        return None
    return sorted(found, key=lambda row: (-row[1], row[0]))[:limit]


class Staging:
    """A ranking in the making, beside the one that is read. Made by ``rebuilding``."""

    def __init__(self, token: str) -> None:
        self._token = token
        # Older than all that will be staged: while it is there, nothing of that has expired.
        self._proof = f"ranking:staging:{token}"
        self._staged = {self._proof}

    def begin(self) -> None:
        """Keep consumers from counting. Raises BeingRebuilt."""
        begin = _redis().register_script(_BEGIN)
        if not begin(keys=[_REBUILDING], args=[self._token, REBUILDING_SECONDS]):
            raise BeingRebuilt(
                f"the ranking is being rebuilt already; wait for its end, at most {REBUILDING_SECONDS} s if that was"
                " killed, and run it again"
            )
        _redis().set(self._proof, "", ex=_STAGING_SECONDS)

    def end(self) -> None:
        """Let consumers count, and drop what was not swapped in."""
        _redis().register_script(_RELEASE)(keys=[_REBUILDING], args=[self._token])
        _redis().unlink(*self._staged)

    def add(self, day: date, quantities: Mapping[int, int], event_ids: Iterable[UUID]) -> None:
        """Add to a day, without a look at the ids: nothing may be added twice. Raises RebuildLost."""
        self.renew()
        pipeline = _redis().pipeline(transaction=False)
        if quantities:
            pipeline.zadd(self._key("quantities", day), {str(product): sold for product, sold in quantities.items()})
            pipeline.expire(self._key("quantities", day), _STAGING_SECONDS)
        if members := [event_id.hex for event_id in event_ids]:
            pipeline.sadd(self._key("events", day), *members)
            pipeline.expire(self._key("events", day), _STAGING_SECONDS)
        pipeline.execute()

    def count(self, sales: Sequence[Sale]) -> int:
        """Count those of ``sales`` that are new, as ``count`` does. Raises RebuildLost."""
        self.renew()
        expire = dict.fromkeys(sorted({sale.day for sale in sales}), _STAGING_SECONDS)
        counted = _count(_WHILE_REBUILDING, self._token, sales, self._key, "EXPIRE", expire)
        if counted < 0:
            raise _lost()
        return counted

    def renew(self) -> None:
        """Go on keeping consumers from counting. Raises RebuildLost."""
        renew = _redis().register_script(_RENEW)
        if not renew(keys=[_REBUILDING], args=[self._token, REBUILDING_SECONDS]):
            raise _lost()

    def swap(self, days: Sequence[date]) -> None:
        """Put what was gathered in the place of these days, and let the counting go on. Raises RebuildLost."""
        keys, expire_at = [_LOADED, _REBUILDING, self._proof], []
        for day in days:
            for kind in ("quantities", "events"):
                keys += [self._key(kind, day), _live_key(kind, day)]
                expire_at.append(int(start_of(day + timedelta(days=1 + _KEPT_DAYS)).timestamp()))
        swap = _redis().register_script(_SWAP)
        if not swap(keys=keys, args=[_marker(), self._token, *expire_at]):
            raise _lost()

    def _key(self, kind: str, day: date) -> str:
        key = f"ranking:staging:{self._token}:{kind}:{day}"
        self._staged.add(key)
        return key


@contextmanager
def rebuilding() -> Iterator[Staging]:
    """Nothing is counted within; what is not swapped in at the end is dropped. Raises BeingRebuilt.

    A read of PostgreSQL, or of the topics' ends, must begin within.
    """
    staging = Staging(uuid4().hex)
    try:
        staging.begin()
        yield staging
    finally:
        # Of a killed process, and without Redis, all of it expires by itself.
        with suppress(RedisError):
            staging.end()


def _count(guard: str, right: str, sales: Sequence[Sale], key: Any, expire: str, expiry: Mapping[date, int]) -> int:
    """Run ``guard`` with ``right``, then count; ``expiry`` is what ``expire`` wants for each day."""
    places = {day: 3 + 2 * number for number, day in enumerate(expiry)}
    keys = [_LOADED, _REBUILDING, *(key(kind, day) for day in expiry for kind in ("quantities", "events"))]
    body = [
        (places[sale.day], sale.event_id.hex, {str(product): sold for product, sold in sale.quantities.items()})
        for sale in sales
    ]
    expiries = [value for value in expiry.values() for _ in range(2)]
    args = [right, msgspec.json.encode(body), expire, *expiries]
    return int(_redis().register_script(guard + _COUNT)(keys=keys, args=args))


def _lost() -> RebuildLost:
    return RebuildLost("the rebuild of the ranking was overtaken or Redis was emptied; nothing changed, run it again")


def _marker() -> str:
    """What ``ranking:loaded`` must say: with other days than ours the ranking is of no use."""
    return f"v1 {settings.BUSINESS_TIME_ZONE}"


def _live_key(kind: str, day: date) -> str:
    return f"ranking:{kind}:{day}"


def _redis() -> Any:
    return redis_connection()
