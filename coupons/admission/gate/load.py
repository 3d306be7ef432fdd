"""Load a missing gate from PostgreSQL: the holders of the coupon and the undecided requests.

The gate is built from one database snapshot under staging keys and activated at once. While there is no gate no request
is admitted, so the snapshot misses only requests whose rows are being inserted at that moment. As many requests too
many may be admitted, and the issuer refuses them.
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

# After a loader was killed, no other can load the gate for this long.
_LOCK_SECONDS = 10.0
# The gates that a process loads in the background at the same time: each takes a database connection.
_background_loads = BoundedSemaphore(4)
_CHUNK = 5000

# One statement is one snapshot. Reservations come after user coupons, so for a user with both the reservation counts.
_READ = """
    SELECT user_id, NULL::uuid, NULL::float, status = 'REVOKED' FROM coupons_usercoupon WHERE coupon_id = %s
    UNION ALL
    SELECT user_id, request_id, extract(epoch FROM statement_timestamp() - created_at)::float, false
    FROM coupons_reservation WHERE coupon_id = %s
"""
_READ_FINISHED = """
    SELECT request_id, coupon_id, user_id, reason FROM coupons_issuerequest WHERE request_id = ANY(%s::uuid[])
"""


# User id; request id and age in seconds of an undecided request; whether the coupon was revoked. Plain tuples, since
# building a million objects of any class takes seconds.
_HolderRow = tuple[int, UUID | None, float | None, bool]


def load(coupon_id: int) -> bool:
    """Load the gate of a coupon, a large one in a background thread; False if another loader holds the lock.

    Raises Redis and database errors.
    """
    lock: Lock = redis().lock(lock_key(coupon_id), timeout=_LOCK_SECONDS, thread_local=False)
    if not lock.acquire(blocking=False):
        return False
    in_background = False
    try:
        # Another loader may have finished between the call that missed the gate and the lock.
        if run("check.lua", keys(coupon_id), [0]) != COMPLETE and not _load(coupon_id, lock, max_chunks=1):
            # The requests of this process must not wait while a million holders are read.
            in_background = _background_loads.acquire(blocking=False)
            if in_background:
                Thread(target=_load_in_background, args=(coupon_id, lock), daemon=True).start()
    finally:
        if not in_background:
            _release(lock)
    return True


def _load_in_background(coupon_id: int, lock: Lock) -> None:
    try:
        _load(coupon_id, lock)
    except Exception as error:
        logger.warning("the gate of coupon %s was not loaded: %s", coupon_id, first_line(error))
    finally:
        _release(lock)
        _background_loads.release()
        connection.close()


def _release(lock: Lock) -> None:
    # A lock that cannot be released expires.
    with suppress(RedisError):
        lock.release()


def _load(coupon_id: int, lock: Lock, *, max_chunks: int | None = None) -> bool:
    """Build and activate the gate. Returns False, without a change, if it would take more than ``max_chunks``."""
    started_at = time.monotonic()
    token = lock.local.token.decode()
    staging = staging_keys(coupon_id, token)
    undecided: list[UUID] = []
    with closing(_read_holders(coupon_id)) as chunks:
        for number, holders in enumerate(chunks, 1):
            if number == max_chunks and len(holders) == _CHUNK:
                return False
            _stage(staging, holders)
            undecided += [request_id for _, request_id, _, _ in holders if request_id is not None]
            lock.reacquire()
    # The sequence continues from the number of units held.
    held = redis().hlen(staging.holders)
    redis().hset(staging.holders, "sequence", held)
    if not run("activate.lua", [lock.name, *staging, *keys(coupon_id)], [token, LIFETIME_SECONDS]):
        return True
    metrics.GATE_LOADED.inc()
    logger.info(
        "the gate of coupon %s is loaded: %s units held, %s requests undecided, %.3f s",
        coupon_id, held, len(undecided), time.monotonic() - started_at,
    )  # fmt: skip
    # Results written before the activation did not reach the gate: apply them now.
    for start in range(0, len(undecided), _CHUNK):
        release(read_finished(undecided[start : start + _CHUNK]))
    return True


def _read_holders(coupon_id: int) -> Generator[list[_HolderRow]]:
    # A server-side cursor, so that a million rows are not in memory at once; it needs a transaction.
    with transaction.atomic(), connection.chunked_cursor() as cursor:
        cursor.execute(_READ, [coupon_id, coupon_id])
        while rows := cursor.fetchmany(_CHUNK):
            yield rows


def _stage(staging: Keys, holders: Sequence[_HolderRow]) -> None:
    client = redis()
    seconds, microseconds = client.time()
    now = seconds + microseconds / 1e6
    issued = [str(user_id) for user_id, request_id, _, revoked in holders if request_id is None and not revoked]
    reserved = {user_id: f"{request_id}:0" for user_id, request_id, _, _ in holders if request_id is not None}
    # Converted by age, since PostgreSQL's and Redis's clocks differ.
    pending_since = {user_id: int((now - age) * 1000) for user_id, _, age, _ in holders if age is not None}
    revoked = [user_id for user_id, _, _, revoked in holders if revoked]
    if issued:
        run("load.lua", [staging.holders], [",".join(issued)])
    with client.pipeline(transaction=False) as pipeline:
        if reserved:
            pipeline.hset(staging.holders, mapping=reserved)
            pipeline.zadd(staging.pending, pending_since)
        if revoked:
            pipeline.sadd(staging.revoked, *revoked)
        for name in staging:
            pipeline.expire(name, LEFTOVER_SECONDS)
        pipeline.execute()


def read_finished(request_ids: Sequence[UUID]) -> list[FinishedRequest]:
    """Return those of the requests that have a result."""
    with connection.cursor() as cursor:
        cursor.execute(_READ_FINISHED, [arrays.uuids(request_ids)])
        return [FinishedRequest(*row) for row in cursor.fetchall()]
