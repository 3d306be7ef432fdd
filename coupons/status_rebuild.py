"""Rebuild the status cache in Redis from PostgreSQL, or from the history of the topics."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

from django.db import transaction
from django.db.models import Q

from common.chunks import chunks
from common.postgres.clock import database_time, isoformat_z
from common.processes.lifecycle import StopFlag, first_line
from common.processes.outages import is_transient
from coupons.coupon_audit import Trail, Trails
from coupons.events import IssueEnded
from coupons.issuance import status_cache
from coupons.issuance.status_cache import RequestStatus
from coupons.messages import ISSUE_FAILED, ISSUE_SUCCEEDED, read_result_task
from coupons.models import IssueRequest
from coupons.policy import FAILED, SUCCESS, is_rehearsal
from coupons.selectors import terminal_status
from kafka_bridge.registry import ReceivedMessage, is_of_types

logger = logging.getLogger(__name__)

RESULT_TYPES = (ISSUE_SUCCEEDED, ISSUE_FAILED)

_CHUNK = 1000


@dataclass(slots=True)
class ResultHistory:
    """The results on the topics.

    ``written``: number of statuses written to the cache. ``unreadable``: number of messages skipped. ``trails``: the
    results by coupon type.
    """

    written: int = 0
    unreadable: int = 0
    trails: Trails = field(default_factory=lambda: Trails(Trail))


def statuses_rebuild(*, stop: StopFlag) -> int:
    """Write all results young enough for the status cache from PostgreSQL; return how many were written.

    Ends early on ``stop``: each cached status is correct by itself. Raises RedisError.
    """
    oldest = _oldest()
    rows = IssueRequest.objects.filter(
        Q(status=SUCCESS, processed_at__gt=oldest[SUCCESS]) | Q(processed_at__gt=oldest[FAILED])
    )
    written = 0
    # Outside a transaction the cursor would be lost behind a pooler in transaction mode.
    with transaction.atomic():
        for chunk in chunks(rows.iterator(chunk_size=_CHUNK), _CHUNK):
            written += status_cache.write(
                terminal_status(row) for row in chunk if not is_rehearsal(row.coupon_type, row.user_id)
            )
            if stop:
                break
    return written


def statuses_rebuild_from(messages: Iterable[ReceivedMessage], *, stop: StopFlag) -> ResultHistory:
    """Write all results young enough for the status cache from their events; a repeated event counts once.

    Keeps the id of every event in memory, about 100 bytes each. Unreadable messages are logged and counted. Ends early
    on ``stop``. Raises RedisError.
    """
    history = ResultHistory()
    oldest = _oldest()
    results = (result for result in _read(messages, history) if result.processed_at > oldest[result.status])
    for chunk in chunks(results, _CHUNK):
        history.written += status_cache.write(_statuses(chunk))
        if stop:
            break
    return history


def _read(messages: Iterable[ReceivedMessage], history: ResultHistory) -> Iterator[IssueEnded]:
    """Yield the result of each event once, and add it to the trails of ``history``."""
    seen: set[bytes] = set()
    for message in messages:
        try:
            if not is_of_types(message, RESULT_TYPES):
                continue
            event_id, result, _ = read_result_task(message)
        except Exception as error:
            if is_transient(error):
                raise
            logger.warning("%s is unreadable and left out: %s", message, first_line(error))
            history.unreadable += 1
            continue
        if event_id.bytes in seen:
            continue
        seen.add(event_id.bytes)
        if is_rehearsal(result.coupon_type, result.user_id):
            continue
        history.trails[result.coupon_type].add(
            result.reason or result.status, 1, result.processed_at, result.processed_at
        )
        yield result


def _statuses(results: Sequence[IssueEnded]) -> list[RequestStatus]:
    """Convert events to statuses. Only PostgreSQL has the times at which the requests were made."""
    request_ids = [result.request_id for result in results]
    requested_at: dict[UUID, datetime | None] = dict(
        IssueRequest.objects.filter(request_id__in=request_ids).values_list("request_id", "requested_at")
    )
    return [
        RequestStatus(
            request_id=result.request_id,
            coupon_type=result.coupon_type,
            user_id=result.user_id,
            status=result.status,
            reason=result.reason,
            user_coupon_id=result.user_coupon_id,
            requested_at=isoformat_z(moment) if (moment := requested_at.get(result.request_id)) else None,
            processed_at=isoformat_z(result.processed_at),
        )
        for result in results
    ]


def _oldest() -> dict[str, datetime]:
    """By status, the time since which results are still cached in Redis, by the database's clock."""
    now = database_time()
    return {status: now - timedelta(seconds=status_cache.seconds_kept(status)) for status in (SUCCESS, FAILED)}
