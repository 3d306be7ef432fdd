"""A gate that is not there is built from PostgreSQL: who has the coupon, and who waits for an answer.

What one snapshot of the database shows is built beside the gate's place and put there at once. While there is no gate
nobody is let in, so nothing is missed but requests whose rows are being inserted at that moment: those let a few too
many in, whom the issuer refuses.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Sequence
from contextlib import closing, suppress
from threading import BoundedSemaphore, Thread
from uuid import UUID

from django.db import connection, transaction
from redis.exceptions import RedisError
from redis.lock import Lock

from common.postgres import arrays
from common.processes.lifecycle import first_line

from ... import metrics
from ..base import FinishedRequest
from .redis_keys import COMPLETE, LEFTOVER_SECONDS, LIFETIME_SECONDS, Keys, keys, lock_key, redis, run, staging_keys
from .releasing import release

logger = logging.getLogger(__name__)

# Of a loader that was killed: nobody else loads for so long.
_LOCK_SECONDS = 10.0
# How many gates a process loads behind its requests: each takes a session of the database.
_slots = BoundedSemaphore(4)
_CHUNK = 5000

# One statement is one snapshot. A request under way comes after the coupon that its user may have, and stands for both.
_READ = """
    SELECT user_id, NULL::uuid, NULL::float, status = 'REVOKED' FROM coupons_usercoupon WHERE coupon_id = %s
    UNION ALL
    SELECT user_id, request_id, extract(epoch FROM statement_timestamp() - created_at)::float, false
    FROM coupons_reservation WHERE coupon_id = %s
"""
_READ_ENDED = """
    SELECT request_id, coupon_id, user_id, reason FROM coupons_issuerequest WHERE request_id = ANY(%s::uuid[])
"""


# User id, request id and age in seconds of one under way, whether the coupon was revoked. Plain tuples, since making a
# million of anything else takes seconds.
_Taker = tuple[int, UUID | None, float | None, bool]


def load(coupon_id: int) -> bool:
    """Build the gate of a coupon and open it, or have it built by a thread; False while somebody else is at it.

    Raises what Redis and the database raise.
    """
    lock: Lock = redis().lock(lock_key(coupon_id), timeout=_LOCK_SECONDS, thread_local=False)
    if not lock.acquire(blocking=False):
        return False
    handed_over = False
    try:
        # Somebody may have loaded it between the look that missed it and the lock.
        if run("check.lua", keys(coupon_id), [0]) != COMPLETE and not _load(coupon_id, lock, most_chunks=1):
            # While a million holders are read, the requests of this process must not wait for that either.
            handed_over = _slots.acquire(blocking=False)
            if handed_over:
                Thread(target=_load_behind, args=(coupon_id, lock), daemon=True).start()
    finally:
        if not handed_over:
            _release(lock)
    return True


def _load_behind(coupon_id: int, lock: Lock) -> None:
    try:
        _load(coupon_id, lock)
    except Exception as error:
        logger.warning("the gate of coupon %s was not loaded: %s", coupon_id, first_line(error))
    finally:
        _release(lock)
        _slots.release()
        connection.close()


def _release(lock: Lock) -> None:
    # A lock that cannot be released runs out.
    with suppress(RedisError):
        lock.release()


def _load(coupon_id: int, lock: Lock, *, most_chunks: int | None = None) -> bool:
    """False if there is more to read than that; nothing has changed then."""
    started_at = time.monotonic()
    token = lock.local.token.decode()
    beside = staging_keys(coupon_id, token)
    undecided: list[UUID] = []
    with closing(_takers(coupon_id)) as chunks:
        for number, takers in enumerate(chunks, 1):
            if number == most_chunks and len(takers) == _CHUNK:
                return False
            _store(beside, takers)
            undecided += [request_id for _, request_id, _, _ in takers if request_id is not None]
            lock.reacquire()
    # The place in line goes on from what is taken.
    taken = redis().hlen(beside.takers)
    redis().hset(beside.takers, "sequence", taken)
    if not run("activate.lua", [lock.name, *beside, *keys(coupon_id)], [token, LIFETIME_SECONDS]):
        return True
    metrics.GATE_LOADED.inc()
    logger.info(
        "the gate of coupon %s is loaded: %s pieces taken, %s requests under way, %.3f s",
        coupon_id, taken, len(undecided), time.monotonic() - started_at,
    )  # fmt: skip
    # Until it was open nobody could tell it of an end.
    for start in range(0, len(undecided), _CHUNK):
        release(read_ended(undecided[start : start + _CHUNK]))
    return True


def _takers(coupon_id: int) -> Generator[list[_Taker]]:
    # A million rows are not held in memory at once; a cursor of the server needs a transaction.
    with transaction.atomic(), connection.chunked_cursor() as cursor:
        cursor.execute(_READ, [coupon_id, coupon_id])
        while rows := cursor.fetchmany(_CHUNK):
            yield rows


def _store(beside: Keys, takers: Sequence[_Taker]) -> None:
    client = redis()
    seconds, microseconds = client.time()
    now = seconds + microseconds / 1e6
    having = [str(user_id) for user_id, request_id, _, revoked in takers if request_id is None and not revoked]
    waiting = {user_id: f"{request_id}:0" for user_id, request_id, _, _ in takers if request_id is not None}
    # Ages are told from clock to clock, not times.
    opened = {user_id: int((now - age) * 1000) for user_id, _, age, _ in takers if age is not None}
    revoked = [user_id for user_id, _, _, revoked in takers if revoked]
    if having:
        run("load.lua", [beside.takers], [",".join(having)])
    with client.pipeline(transaction=False) as pipeline:
        if waiting:
            pipeline.hset(beside.takers, mapping=waiting)
            pipeline.zadd(beside.open, opened)
        if revoked:
            pipeline.sadd(beside.revoked, *revoked)
        for name in beside:
            pipeline.expire(name, LEFTOVER_SECONDS)
        pipeline.execute()


def read_ended(request_ids: Sequence[UUID]) -> list[FinishedRequest]:
    """How those of the requests ended that have."""
    with connection.cursor() as cursor:
        cursor.execute(_READ_ENDED, [arrays.uuids(request_ids)])
        return [FinishedRequest(*row) for row in cursor.fetchall()]
