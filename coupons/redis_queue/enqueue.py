"""Enqueue requests in the Redis queue when they are accepted, and again if the queue has lost them."""

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
    """Add accepted requests to the Redis queue, after their commit. Best effort: lost ones are enqueued again."""
    try:
        queue.append(request_ids)
    except RedisError as error:
        logger.warning(
            "%d requests were not added to the Redis queue, the issue worker enqueues them again: %s",
            len(request_ids),
            error,
        )


def enqueue_again(older_than_seconds: float, limit: int) -> int:
    """Enqueue undecided requests on this transport that are older than ``older_than_seconds``, the oldest ``limit``.

    Returns the number of requests. Some may still be in the queue or claimed by a worker: the second worker to handle
    one finds it decided. Raises RedisError and database errors.
    """
    with connection.cursor() as cursor:
        cursor.execute(_UNDECIDED, [older_than_seconds, limit])
        request_ids = [request_id for (request_id,) in cursor.fetchall()]
    if request_ids:
        queue.append(request_ids)
        metrics.WORKER_PUSHED_AGAIN.inc(len(request_ids))
        logger.info("%d undecided requests were enqueued again in the Redis queue", len(request_ids))
    return len(request_ids)
