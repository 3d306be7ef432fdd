"""Requests of the outbox that are undecided: those that wait, and those that the topic or the worker's list has lost.

Beside millions of decided rows a look is cheap: what was undecided at the last one is looked up by its id, and only
rows that came since are read. Below them everything is decided, or remembered.
"""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

from django.db import connection, transaction

from common.postgres import arrays
from common.processes.lifecycle import StopFlag
from kafka_bridge.client import group_lag
from kafka_bridge.outbox.settled_mark import SettledIds

from ..consumer_groups import ISSUE
from ..messages import ISSUE_REQUESTED
from ..redis_queue import TRANSPORT, queue
from .findings import PUBLISHED_UNDECIDED, WORKER_FOREIGN, WORKER_LOST, Findings

_CHUNK = 10_000
# Past that many nothing is to be learned by reading on: the issuer is far behind.
_MOST_UNDECIDED = 200_000

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
_STILL = """
    SELECT o.event_id, o.topic = %s, o.published_at < statement_timestamp() - %s * interval '1 second'
    FROM kafka_bridge_outboxmessage o
    WHERE o.event_id = ANY(%s::uuid[])
      AND NOT EXISTS (SELECT FROM coupons_issuerequest r WHERE r.request_id = o.event_id)
"""
_PUBLISH_AGAIN = """
    UPDATE kafka_bridge_outboxmessage o SET published_at = NULL
    WHERE o.event_id = ANY(%s::uuid[]) AND o.published_at IS NOT NULL
      AND NOT EXISTS (SELECT FROM coupons_issuerequest r WHERE r.request_id = o.event_id)
"""


class OutboxCheck:
    """Follows the outbox. ``patience``: seconds from publishing to the decision; ``lag`` tells the issuer's."""

    def __init__(self, patience: float, lag: Callable[[], int] | None = None) -> None:
        self._patience = patience
        self._lag = lag or _issuer_lag
        # Every request up to the mark is decided, or remembered with its row's id.
        self._mark = 0
        self._undecided: dict[UUID, int] = {}
        self._settled = SettledIds()

    def check(self, findings: Findings, stop: StopFlag, *, repair: bool) -> None:
        """Look at what is undecided. Raises ServiceUnavailable if Kafka is needed and away."""
        self._settled.observe()
        still = self._still(list(self._undecided))
        self._undecided = {request_id: row for request_id, row in self._undecided.items() if request_id in still}
        self._read_on(stop)
        still = self._still(list(self._undecided))
        findings.waiting = len(still)
        # A row in an unfinished transaction may yet come below an id that was read.
        self._undecided = {request_id: row for request_id, row in self._undecided.items() if row <= self._mark}
        self._check_worker([one for one, (by_worker, old) in still.items() if by_worker and old], findings, repair)
        self._check_topic([one for one, (by_worker, old) in still.items() if not by_worker and old], findings, repair)

    def _check_topic(self, published: list[UUID], findings: Findings, repair: bool) -> None:
        # What was on the topic when it was published is decided, if after that nothing was left to read; so it is
        # looked for once more after the lag.
        if not published or self._lag() != 0:
            return
        lost = list(self._still(published))
        for request_id in lost:
            findings.add(PUBLISHED_UNDECIDED, f"request {request_id}")
        findings.waiting -= len(lost)
        if repair and lost:
            with transaction.atomic(), connection.cursor() as cursor:
                cursor.execute(_PUBLISH_AGAIN, [arrays.uuids(lost)])

    def _check_worker(self, old: list[UUID], findings: Findings, repair: bool) -> None:
        if not old:
            return
        foreign = queue.keys_of_wrong_type()
        for name in foreign:
            findings.add(WORKER_FOREIGN, f"key {name!r}")
        if foreign and not repair:
            # Whether anything is lost cannot be seen.
            return
        if foreign:
            queue.remove(foreign)
        known = queue.all_ids()
        absent = [request_id for request_id in old if str(request_id).encode() not in known]
        lost = list(self._still(absent))
        for request_id in lost:
            findings.add(WORKER_LOST, f"request {request_id}")
        findings.waiting -= len(lost)
        if repair and lost:
            # One that was being put back is there twice then: who comes second finds it decided.
            queue.append(lost)

    def _read_on(self, stop: StopFlag) -> None:
        place = self._mark
        while not stop and len(self._undecided) < _MOST_UNDECIDED:
            with connection.cursor() as cursor:
                cursor.execute(_READ, [ISSUE_REQUESTED, place, _CHUNK])
                last, request_ids, row_ids = cursor.fetchone()
            if last is None:
                break
            self._undecided.update(zip(request_ids or (), row_ids or (), strict=True))
            place = last
        self._mark = max(self._mark, min(place, self._settled.value))

    def _still(self, request_ids: list[UUID]) -> dict[UUID, tuple[bool, bool]]:
        """Those undecided: whether the worker carries them, and whether they were published too long ago."""
        found: dict[UUID, tuple[bool, bool]] = {}
        for start in range(0, len(request_ids), _CHUNK):
            with connection.cursor() as cursor:
                cursor.execute(_STILL, [TRANSPORT, self._patience, arrays.uuids(request_ids[start : start + _CHUNK])])
                found.update((row[0], (row[1], bool(row[2]))) for row in cursor.fetchall())
        return found


def _issuer_lag() -> int:
    return group_lag(ISSUE.group_id, ISSUE.topics)
