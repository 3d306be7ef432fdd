"""Find undecided requests of the outbox: those in progress, and those lost by the topic or by the Redis queue.

A check is cheap beside millions of decided rows: requests undecided at the last check are looked up by id, and only
rows added since are read. All rows below those are decided, or remembered as undecided.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple
from uuid import UUID

from django.db import connection

from common.postgres import arrays
from common.processes.lifecycle import StopFlag
from kafka_bridge.client import group_lag
from kafka_bridge.outbox.holds import send_again
from kafka_bridge.outbox.published import is_published_sql
from kafka_bridge.outbox.settled_mark import SettledIds

from ..consumer_groups import ISSUE
from ..messages import ISSUE_REQUESTED
from ..redis_queue import TRANSPORT, queue
from .findings import PUBLISHED_UNDECIDED, WORKER_FOREIGN, WORKER_LOST, Findings

_CHUNK = 10_000
# With that many the issuer is far behind, and reading on finds nothing new.
_MAX_UNDECIDED = 200_000

_READ = """
    SELECT max(id), array_agg(event_id) FILTER (WHERE is_undecided), array_agg(id) FILTER (WHERE is_undecided)
    FROM (
        SELECT o.id, o.event_id, o.event_type = %s AND o.headers IS NULL AND r.request_id IS NULL AS is_undecided
        FROM (
            SELECT id, event_id, event_type, headers FROM kafka_bridge_outboxmessage WHERE id > %s ORDER BY id LIMIT %s
        ) AS o
             LEFT JOIN coupons_issuerequest r ON r.request_id = o.event_id
    ) AS row
"""
_READ_UNDECIDED = f"""
    SELECT o.event_id, o.topic = %s, {is_published_sql("o")},
           o.created_at < statement_timestamp() - %s * interval '1 second'
    FROM kafka_bridge_outboxmessage o
    WHERE o.event_id = ANY(%s::uuid[])
      AND NOT EXISTS (SELECT FROM coupons_issuerequest r WHERE r.request_id = o.event_id)
"""


class Undecided(NamedTuple):
    """A request without a result: whether the issue worker has it, and whether it is published."""

    by_worker: bool
    is_published: bool
    is_old: bool


class OutboxCheck:
    """Follows the outbox.

    ``patience``: seconds allowed from publishing to the decision. ``lag`` returns the issuer's lag in messages; by
    default Kafka is asked.
    """

    def __init__(self, patience: float, lag: Callable[[], int] | None = None) -> None:
        self._patience = patience
        self._lag = lag or partial(group_lag, ISSUE.group_id, ISSUE.topics)
        # Every request with a row id up to the mark is decided, or in `_undecided` with its row id.
        self._mark = 0
        self._undecided: dict[UUID, int] = {}
        # When each was first seen published, on the monotonic clock.
        self._published_at: dict[UUID, float] = {}
        self._settled = SettledIds()
        self._is_first = True

    def check(self, findings: Findings, stop: StopFlag, *, repair: bool) -> None:
        """Check all undecided requests. Raises ServiceUnavailable if Kafka is needed and away, and RedisError."""
        self._settled.observe()
        still = self._still_undecided(list(self._undecided))
        self._undecided = {request_id: row for request_id, row in self._undecided.items() if request_id in still}
        self._read_on(stop)
        still = self._still_undecided(list(self._undecided))
        findings.waiting = len(still)
        # An open transaction may still commit a row with an id below one already read: keep only rows up to the mark.
        self._undecided = {request_id: row for request_id, row in self._undecided.items() if row <= self._mark}
        queued = [request_id for request_id, found in still.items() if found.by_worker and found.is_old]
        self._check_worker(queued, findings, repair)
        self._check_topic(self._overdue(still), findings, repair)

    def _overdue(self, still: Mapping[UUID, Undecided]) -> list[UUID]:
        """Return the requests that were published too long ago, as seen by this process.

        No time of publishing is stored. At the first check the age of the request stands in for it.
        """
        now = time.monotonic()
        published = {
            request_id: float("-inf") if self._is_first and found.is_old else now
            for request_id, found in still.items()
            if found.is_published and not found.by_worker
        }
        self._is_first = False
        self._published_at = {
            request_id: self._published_at.get(request_id, at) for request_id, at in published.items()
        }
        return [request_id for request_id, at in self._published_at.items() if now - at >= self._patience]

    def _check_topic(self, published: list[UUID], findings: Findings, repair: bool) -> None:
        # A lag of 0 proves that every request published before it was read is decided, unless the topic lost it. So the
        # requests are looked up again after the lag.
        if not published or self._lag() != 0:
            return
        lost = list(self._still_undecided(published))
        findings.add(PUBLISHED_UNDECIDED, *(f"request {request_id}" for request_id in lost))
        findings.waiting -= len(lost)
        if repair and lost:
            send_again(lost)

    def _check_worker(self, overdue: list[UUID], findings: Findings, repair: bool) -> None:
        if not overdue:
            return
        foreign = queue.keys_of_wrong_type()
        findings.add(WORKER_FOREIGN, *(f"key {name!r}" for name in foreign))
        if foreign and not repair:
            # The queue cannot be read, so lost requests cannot be distinguished from queued ones.
            return
        if foreign:
            queue.remove(foreign)
        queued = queue.all_ids()
        absent = [request_id for request_id in overdue if str(request_id).encode() not in queued]
        lost = list(self._still_undecided(absent))
        findings.add(WORKER_LOST, *(f"request {request_id}" for request_id in lost))
        findings.waiting -= len(lost)
        if repair and lost:
            # A request requeued at the same moment is in the queue twice then; the second run finds it decided.
            queue.append(lost)

    def _read_on(self, stop: StopFlag) -> None:
        last_row_id = self._mark
        while not stop and len(self._undecided) < _MAX_UNDECIDED:
            with connection.cursor() as cursor:
                cursor.execute(_READ, [ISSUE_REQUESTED, last_row_id, _CHUNK])
                last, request_ids, row_ids = cursor.fetchone()
            if last is None:
                break
            self._undecided.update(zip(request_ids or (), row_ids or (), strict=True))
            last_row_id = last
        self._mark = max(self._mark, min(last_row_id, self._settled.value))

    def _still_undecided(self, request_ids: list[UUID]) -> dict[UUID, Undecided]:
        """Return the undecided of ``request_ids``; ``is_old``: accepted longer ago than ``patience``."""
        found: dict[UUID, Undecided] = {}
        for start in range(0, len(request_ids), _CHUNK):
            with connection.cursor() as cursor:
                cursor.execute(
                    _READ_UNDECIDED, [TRANSPORT, self._patience, arrays.uuids(request_ids[start : start + _CHUNK])]
                )
                found.update((row[0], Undecided(*row[1:])) for row in cursor.fetchall())
        return found
