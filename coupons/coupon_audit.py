"""Count the results of each coupon's requests: by the events on the topics, and by PostgreSQL."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import datetime

import msgspec
from django.db import connection, transaction
from django.db.models import Count, Max, Min, Q
from django.db.models.expressions import RawSQL

from common.postgres.clock import isoformat_z
from coupons import policy
from coupons.events import IssueEnded
from coupons.messages import ISSUE_FAILED, ISSUE_SUCCEEDED
from coupons.models import Coupon, IssueRequest
from coupons.policy import SUCCESS
from kafka_bridge.models import OutboxMessage
from kafka_bridge.outbox.published import unpublished_sql

_CHUNK = 1000


@dataclass(slots=True)
class Trail:
    """The results of one coupon type: their ``counts`` by failure reason or SUCCESS, the first and the last time."""

    counts: Counter[str] = field(default_factory=Counter)
    first: datetime | None = None
    last: datetime | None = None

    def add(self, result: str, number: int, first: datetime, last: datetime) -> None:
        self.counts[result] += number
        self.first = first if self.first is None else min(self.first, first)
        self.last = last if self.last is None else max(self.last, last)

    def __str__(self) -> str:
        failed = {reason: number for reason, number in sorted(self.counts.items()) if reason != SUCCESS and number}
        text = f"{self.counts[SUCCESS]} issued, {sum(failed.values())} failed"
        if failed:
            text += f" ({', '.join(f'{reason} {number}' for reason, number in failed.items())})"
        if self.first and self.last:
            text += f", first {isoformat_z(self.first)}, last {isoformat_z(self.last)}"
        return text


# By coupon type; a type without results has an empty trail.
Trails = defaultdict[str, Trail]


def decided() -> Trails:
    """Return the trails according to PostgreSQL, without rehearsals. Reads the whole table of terminal rows."""
    trails = Trails(Trail)
    counted = (
        IssueRequest.objects.exclude(
            coupon_type__startswith=policy.REHEARSAL_PREFIX, user_id__gte=policy.FIRST_REHEARSAL_USER
        )
        .values_list("coupon_type", "status", "reason")
        .annotate(Count("request_id"), Min("processed_at"), Max("processed_at"))
    )
    for coupon_type, status, reason, number, first, last in counted:
        trails[coupon_type].add(reason or status, number, first, last)
    return trails


def published() -> Trails:
    """Return the trails of ``decided`` without results whose event is not published yet.

    Must not be called inside a transaction.
    """
    with transaction.atomic(durable=True):
        with connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        trails = decided()
        unpublished = OutboxMessage.objects.filter(
            id__in=RawSQL(f"SELECT id FROM ({unpublished_sql()}) AS unpublished", []),
            headers=None,
            event_type__in=[ISSUE_SUCCEEDED, ISSUE_FAILED],
        ).values_list("payload", flat=True)
        for payload in unpublished.iterator(chunk_size=_CHUNK):
            try:
                result = msgspec.json.decode(bytes(payload or b""), type=IssueEnded)
            except (msgspec.MsgspecError, ValueError, RecursionError):
                # Its message on the topic is unreadable too, so it is in neither count.
                continue
            if not policy.is_rehearsal(result.coupon_type, result.user_id):
                trails[result.coupon_type].counts[result.reason or result.status] -= 1
    return trails


def differing(on_topics: Trails, *, before: Trails, after: Trails) -> set[str]:
    """Return the coupon types whose counts on the topics differ from PostgreSQL.

    A count differs if it is lower than ``before``, the results published before the topics were read, or higher than
    ``after``, the results decided after that. Results decided or published in between are no difference.
    """
    return {
        coupon_type
        for coupon_type in on_topics.keys() | before.keys() | after.keys()
        if not before[coupon_type].counts <= on_topics[coupon_type].counts <= after[coupon_type].counts
    }


def stock() -> dict[str, str]:
    """Return the stock by coupon type as text: counter, total and coupons of users."""
    rows = Coupon.objects.filter(rehearsal=False).annotate(
        held=Count("user_coupons", filter=~Q(user_coupons__status="REVOKED"))
    )
    return {
        row.coupon_type: f"counter {row.issued} of {row.total_quantity}, {row.held} in users' hands" for row in rows
    }
