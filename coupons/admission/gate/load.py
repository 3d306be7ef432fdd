"""Load a missing gate from PostgreSQL: the holders of the coupon and the undecided requests.

The gate is built from one database snapshot under staging keys and activated at once. While there is no gate no request
is admitted, so the snapshot misses only requests whose rows are being inserted at that moment. As many requests too
many may be admitted, and the issuer refuses them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from threading import BoundedSemaphore, Thread
from uuid import UUID

from django.db import connection
from redis.exceptions import RedisError
from redis.lock import Lock

from common.chunks import row_chunks
from common.postgres import arrays
from common.processes.lifecycle import first_line

from ... import metrics
from ..base import FinishedRequest
from .releasing import release
from .store import GateStore

logger = logging.getLogger(__name__)

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


def load(gate: GateStore) -> bool:
    """Load a gate, in a background thread if it is large; False if another loader holds the lock.

    Raises Redis and database errors.
    """
    lock = gate.lock()
    if not lock.acquire(blocking=False):
        return False
    in_background = False
    try:
        # Another loader may have finished between the call that missed the gate and the lock.
        if not gate.is_loaded() and not _load(gate, lock, max_chunks=1):
            # The requests of this process must not wait while a million holders are read.
            in_background = _background_loads.acquire(blocking=False)
            if in_background:
                Thread(target=_load_in_background, args=(gate, lock), daemon=True).start()
    finally:
        if not in_background:
            _release(lock)
    return True


def _load_in_background(gate: GateStore, lock: Lock) -> None:
    try:
        _load(gate, lock)
    except Exception as error:
        logger.warning("the gate of coupon %s was not loaded: %s", gate.coupon_id, first_line(error))
    finally:
        _release(lock)
        _background_loads.release()
        connection.close()


def _release(lock: Lock) -> None:
    # A lock that cannot be released expires.
    with suppress(RedisError):
        lock.release()


def _load(gate: GateStore, lock: Lock, *, max_chunks: int | None = None) -> bool:
    """Build and activate the gate. Returns False, without a change, if it would take more than ``max_chunks``."""
    started_at = time.monotonic()
    token = lock.local.token.decode()
    undecided: list[UUID] = []
    with closing(row_chunks(_READ, [gate.coupon_id, gate.coupon_id], _CHUNK)) as chunks:
        for number, holders in enumerate(chunks, 1):
            if number == max_chunks and len(holders) == _CHUNK:
                return False
            gate.stage(token, holders)
            undecided += [request_id for _, request_id, _, _ in holders if request_id is not None]
            lock.reacquire()
    held = gate.activate(token)
    if held is None:
        return True
    metrics.GATE_LOADED.inc()
    logger.info(
        "the gate of coupon %s is loaded: %s units held, %s requests undecided, %.3f s",
        gate.coupon_id, held, len(undecided), time.monotonic() - started_at,
    )  # fmt: skip
    # Results written before the activation did not reach the gate: apply them now.
    for start in range(0, len(undecided), _CHUNK):
        release(read_finished(undecided[start : start + _CHUNK]))
    return True


def read_finished(request_ids: Sequence[UUID]) -> list[FinishedRequest]:
    """Return those of the requests that have a result."""
    with connection.cursor() as cursor:
        cursor.execute(_READ_FINISHED, [arrays.uuids(request_ids)])
        return [FinishedRequest(*row) for row in cursor.fetchall()]
