"""The Redis queue: a list of request ids, and a backup list of claimed ids for each worker.

list           the ids, the next one first.
backup:<id>    the ids that a worker has claimed and not acknowledged.
alive:<id>     exists while the worker is alive; when it has expired, other workers requeue the backup list.
workers        the ids of workers that may have a backup list.

All keys are in one hash slot. Losing any or all of them loses no request, see ``enqueue_again``. So a key of a wrong
type is dropped, since it would block the workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple
from uuid import UUID, uuid4

from common.redis_client import redis_connection
from common.redis_scripts import run_script

_BASE = "{issue-worker}"
QUEUE = f"{_BASE}:list"
WORKERS = f"{_BASE}:workers"

# Longer than the longest pause (10 s) between two claims of a worker whose batch fails. If a worker hangs for longer,
# another one handles its batch too, and the later of the two finds every request decided.
ALIVE_SECONDS = 15.0

_DROP_WRONG_TYPES = """
for i, expected in ipairs({'list', 'list', 'string', 'set'}) do
    local actual = redis.call('TYPE', KEYS[i]).ok
    if actual ~= expected and actual ~= 'none' then
        redis.call('UNLINK', KEYS[i])
    end
end
"""
_WORKERS = "return redis.call('SMEMBERS', KEYS[4])"
# Ids that are claimed and not acknowledged are returned first, so a worker whose batch failed, or that did not get the
# reply to a call, claims again.
_CLAIM = """
redis.call('SET', KEYS[3], '1', 'PX', ARGV[3])
redis.call('SADD', KEYS[4], ARGV[1])
local claimed = redis.call('LRANGE', KEYS[2], 0, -1)
if #claimed == 0 then
    claimed = redis.call('LPOP', KEYS[1], ARGV[2]) or {}
    for _, request in ipairs(claimed) do
        redis.call('RPUSH', KEYS[2], request)
    end
end
return {claimed, redis.call('LLEN', KEYS[1])}
"""
# By id instead of deleting the list: a delayed call must not remove ids that were claimed after it.
_ACK = """
for _, request in ipairs(ARGV) do
    redis.call('LREM', KEYS[1], 1, request)
end
"""
# To the head, in their order, since they were claimed first.
_REQUEUE = """
if redis.call('EXISTS', KEYS[3]) == 1 then
    return 0
end
local count = 0
while redis.call('LMOVE', KEYS[2], KEYS[1], 'RIGHT', 'LEFT') do
    count = count + 1
end
redis.call('SREM', KEYS[4], ARGV[1])
return count
"""


class RedisQueue:
    """The queue as used by one worker. All methods raise RedisError."""

    def __init__(self) -> None:
        self._id = str(uuid4()).encode()

    def claim(self, limit: int) -> tuple[list[bytes], int]:
        """Return the ids already claimed, else claim at most ``limit``; and the number of ids left in the list."""
        claimed, remaining = _run(_CLAIM, self._id, limit, round(ALIVE_SECONDS * 1000))
        return claimed, remaining

    def ack(self, claimed: Sequence[bytes]) -> None:
        """Acknowledge claimed ids: they are handled."""
        run_script(_ACK, [_backup(self._id)], claimed)

    def requeue(self) -> int:
        """Return the claimed ids to the queue for other workers; returns their number."""
        redis_connection().delete(_alive(self._id))
        return int(_run(_REQUEUE, self._id))

    def requeue_of_dead_workers(self) -> int:
        """Return the ids claimed by dead workers to the queue; returns their number."""
        others = set(_run(_WORKERS, self._id)) - {self._id}
        return sum(int(_run(_REQUEUE, worker)) for worker in others)


def append(request_ids: Sequence[UUID]) -> None:
    """Append ids to the queue. Raises RedisError."""
    redis_connection().rpush(QUEUE, *map(str, request_ids))


class QueuePlace(NamedTuple):
    """Where an id is. ``ahead``: the ids before it in the list, None if it is not there; ``length``: of the list.

    ``claimed``: a worker has it; ``claimer_is_alive``: that worker is alive. ``workers``: how many are alive.
    """

    ahead: int | None
    length: int
    claimed: bool
    claimer_is_alive: bool
    workers: int


def place_of(request_id: UUID) -> QueuePlace:
    """Find an id in the queue or with a worker. Raises RedisError, also where a key has a wrong type."""
    client, text = redis_connection(), str(request_id)
    ahead = client.lpos(QUEUE, text)
    # Read after the list: an id that is claimed in between is found in the backup list.
    workers: list[bytes] = sorted(client.smembers(WORKERS))
    with client.pipeline(transaction=False) as pipeline:
        for worker in workers:
            pipeline.exists(_alive(worker))
            pipeline.lpos(_backup(worker), text)
        pipeline.llen(QUEUE)
        *found, length = pipeline.execute()
    alive, places = found[::2], found[1::2]
    claimers = [bool(is_alive) for is_alive, place in zip(alive, places, strict=True) if place is not None]
    return QueuePlace(ahead, length, bool(claimers), any(claimers), sum(map(bool, alive)))


def all_ids() -> set[bytes]:
    """Return all ids in the queue or claimed by a worker. Raises RedisError.

    The queue is read first, so an id that is claimed in between is found in the backup list. An id that is requeued in
    between may be missed.
    """
    client = redis_connection()
    found: set[bytes] = set(client.lrange(QUEUE, 0, -1))
    for worker in client.smembers(WORKERS):
        found.update(client.lrange(_backup(worker), 0, -1))
    return found


def keys_of_wrong_type() -> list[str | bytes]:
    """Return the queue's keys that have a wrong type, which block the workers. Raises RedisError."""
    client = redis_connection()
    expected_types: dict[str | bytes, bytes] = {QUEUE: b"list", WORKERS: b"set"}
    if client.type(WORKERS) == b"set":
        expected_types |= {_backup(worker): b"list" for worker in client.smembers(WORKERS)}
    return [name for name, expected_type in expected_types.items() if client.type(name) not in (expected_type, b"none")]


def remove(names: Sequence[str | bytes]) -> None:
    """Remove keys; requests that are lost with them are enqueued again. Raises RedisError."""
    redis_connection().unlink(*names)


def _run(source: str, worker: bytes, *args: object) -> Any:
    keys = [QUEUE, _backup(worker), _alive(worker), WORKERS]
    return run_script(_DROP_WRONG_TYPES + source, keys, [worker, *args])


# Bytes, since a worker id written by another client may not be valid UTF-8.
def _backup(worker: bytes) -> bytes:
    return f"{_BASE}:backup:".encode() + worker


def _alive(worker: bytes) -> bytes:
    return f"{_BASE}:alive:".encode() + worker
