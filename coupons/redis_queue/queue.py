"""The list of request ids in Redis, and for each worker a backup list of what it has in hand.

list           the ids, the next one first.
backup:<id>    what a worker took and has not finished. It stays there until the worker says so.
alive:<id>     while it exists the worker counts as alive; else the others put its backup list back.
workers        the ids of workers that may have a backup list.

All are of one hash slot. Losing any of it, or all, loses no request: see ``pushing``. So whatever is of another kind
under these names is dropped, and keeps no worker from its work.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any
from uuid import UUID, uuid4

from common.redis_client import redis_connection

_BASE = "{issue-worker}"
QUEUE = f"{_BASE}:list"
WORKERS = f"{_BASE}:workers"

# Longer than the longest pause between two calls of a worker whose batch fails. Should one hang for longer, somebody
# else handles its batch too, and the later of them finds everything decided.
ALIVE_SECONDS = 15.0

_DROP_OTHER_KINDS = """
for i, kind in ipairs({'list', 'list', 'string', 'set'}) do
    local is = redis.call('TYPE', KEYS[i]).ok
    if is ~= kind and is ~= 'none' then
        redis.call('UNLINK', KEYS[i])
    end
end
"""
_WORKERS = "return redis.call('SMEMBERS', KEYS[4])"
# What was taken before and not finished comes first: so a worker that did not get the answer to a call, or whose batch
# failed, simply asks again.
_TAKE = """
redis.call('SET', KEYS[3], '1', 'PX', ARGV[3])
redis.call('SADD', KEYS[4], ARGV[1])
local taken = redis.call('LRANGE', KEYS[2], 0, -1)
if #taken == 0 then
    taken = redis.call('LPOP', KEYS[1], ARGV[2]) or {}
    for _, request in ipairs(taken) do
        redis.call('RPUSH', KEYS[2], request)
    end
end
return {taken, redis.call('LLEN', KEYS[1])}
"""
# By name and not the list as a whole: a call that arrives late must not remove what was taken since.
_FINISH = """
for _, request in ipairs(ARGV) do
    redis.call('LREM', KEYS[1], 1, request)
end
"""
# To the head, in their order: they were the next ones.
_PUT_BACK = """
if redis.call('EXISTS', KEYS[3]) == 1 then
    return 0
end
local number = 0
while redis.call('LMOVE', KEYS[2], KEYS[1], 'RIGHT', 'LEFT') do
    number = number + 1
end
redis.call('SREM', KEYS[4], ARGV[1])
return number
"""


class RedisQueue:
    """The list, as one worker uses it. Everything raises RedisError."""

    def __init__(self) -> None:
        self._id = str(uuid4()).encode()

    def claim(self, most: int) -> tuple[list[bytes], int]:
        """What is in hand, or else the next ids, ``most`` at the most; and how many are left in the list."""
        taken, left = _run(_TAKE, self._id, most, round(ALIVE_SECONDS * 1000))
        return taken, left

    def ack(self, taken: Sequence[bytes]) -> None:
        """What was taken is done with."""
        _script(_FINISH)(keys=[_backup(self._id)], args=list(taken), client=redis())

    def requeue(self) -> int:
        """Leave what is in hand to the others; returns how many ids."""
        redis().delete(_alive(self._id))
        return int(_run(_PUT_BACK, self._id))

    def requeue_of_dead_workers(self) -> int:
        """Put back what workers had in hand that are no longer alive; returns how many ids."""
        others = set(_run(_WORKERS, self._id)) - {self._id}
        return sum(int(_run(_PUT_BACK, worker)) for worker in others)


def append(request_ids: Sequence[UUID]) -> None:
    """Push ids to the end of the list. Raises RedisError."""
    redis().rpush(QUEUE, *map(str, request_ids))


def all_ids() -> set[bytes]:
    """What is in the list or in somebody's hands. Raises RedisError.

    The list comes first: what goes into a hand meanwhile is seen there. What is put back meanwhile may be missed.
    """
    client = redis()
    found: set[bytes] = set(client.lrange(QUEUE, 0, -1))
    for worker in client.smembers(WORKERS):
        found.update(client.lrange(_backup(worker), 0, -1))
    return found


def keys_of_wrong_type() -> list[str | bytes]:
    """Keys that stand where the lists and the set of workers should: nobody can work with them. Raises RedisError."""
    client = redis()
    kinds: dict[str | bytes, bytes] = {QUEUE: b"list", WORKERS: b"set"}
    if client.type(WORKERS) == b"set":
        kinds |= {_backup(worker): b"list" for worker in client.smembers(WORKERS)}
    return [name for name, kind in kinds.items() if client.type(name) not in (kind, b"none")]


def remove(names: Sequence[str | bytes]) -> None:
    """Take keys away; the requests of a list among them are pushed again. Raises RedisError."""
    redis().unlink(*names)


def redis() -> Any:
    return redis_connection()


def _run(source: str, worker: bytes, *args: object) -> Any:
    script = _script(_DROP_OTHER_KINDS + source)
    return script(keys=[QUEUE, _backup(worker), _alive(worker), WORKERS], args=[worker, *args], client=redis())


@cache
def _script(source: str) -> Any:
    # A server that lost it gets it again.
    return redis().register_script(source)


# Bytes, since what somebody else put among the workers need not be text.
def _backup(worker: bytes) -> bytes:
    return f"{_BASE}:backup:".encode() + worker


def _alive(worker: bytes) -> bytes:
    return f"{_BASE}:alive:".encode() + worker
