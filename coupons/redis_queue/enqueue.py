"""Requests get into the worker's list when they are accepted, and again when the list has lost them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from uuid import UUID

from django.db import connection
from redis.exceptions import RedisError

from .. import metrics
from . import queue

logger = logging.getLogger(__name__)

_UNDECIDED = """
    SELECT request_id FROM coupons_reservation
    WHERE by_worker AND created_at < statement_timestamp() - %s * interval '1 second'
    ORDER BY created_at LIMIT %s
"""


def enqueue(request_ids: Sequence[UUID]) -> None:
    """Tell the worker of accepted requests, once they are committed. Best effort."""
    try:
        queue.append(request_ids)
    except RedisError as error:
        logger.warning(
            "%d requests did not get into the issue worker's list, it will look for them: %s", len(request_ids), error
        )


def enqueue_again(older_than_seconds: float, limit: int) -> int:
    """Push undecided requests that the worker carries and that are older than that: the oldest, ``limit`` at most.

    Returns how many. Some may be in the list or in somebody's hands: who comes second finds them decided. Raises
    RedisError and what the database raises.
    """
    with connection.cursor() as cursor:
        cursor.execute(_UNDECIDED, [older_than_seconds, limit])
        request_ids = [request_id for (request_id,) in cursor.fetchall()]
    if request_ids:
        queue.append(request_ids)
        metrics.WORKER_PUSHED_AGAIN.inc(len(request_ids))
        logger.info("%d undecided requests were pushed into the issue worker's list again", len(request_ids))
    return len(request_ids)
