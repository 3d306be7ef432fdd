"""What became of the requests for each coupon: by its results on the topics, and by PostgreSQL."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime

import msgspec
from django.db import connection, transaction
from django.db.models import Count, Max, Min, Q

from common.postgres.clock import isoformat_z
from coupons.events import IssueEnded
from coupons.messages import ISSUE_FAILED, ISSUE_SUCCEEDED
from coupons.models import Coupon, IssueRequest
from coupons.policy import SUCCESS
from kafka_bridge.models import OutboxMessage

_CHUNK = 1000


@dataclass(slots=True)
class Trail:
    """The results of one coupon type; ``ends`` counts them by reason, SUCCESS for those that got one."""

    ends: Counter[str] = field(default_factory=Counter)
    first: datetime | None = None
    last: datetime | None = None

    def add(self, end: str, number: int, first: datetime, last: datetime) -> None:
        self.ends[end] += number
        self.first = first if self.first is None else min(self.first, first)
        self.last = last if self.last is None else max(self.last, last)

    def __str__(self) -> str:
        failed = {reason: number for reason, number in sorted(self.ends.items()) if reason != SUCCESS and number}
        text = f"{self.ends[SUCCESS]} issued, {sum(failed.values())} failed"
        if failed:
            text += f" ({', '.join(f'{reason} {number}' for reason, number in failed.items())})"
        if self.first and self.last:
            text += f", first {isoformat_z(self.first)}, last {isoformat_z(self.last)}"
        return text


class Trails(dict[str, Trail]):
    """Trails by coupon type; that of a type without results is empty."""

    def __missing__(self, coupon_type: str) -> Trail:
        return self.setdefault(coupon_type, Trail())

    def add(self, coupon_type: str, status: str, reason: str | None, processed_at: datetime) -> None:
        self[coupon_type].add(reason or status, 1, processed_at, processed_at)


def decided() -> Trails:
    """The trails as PostgreSQL has them. Reads the whole table of requests."""
    trails = Trails()
    counted = IssueRequest.objects.values_list("coupon_type", "status", "reason").annotate(
        Count("request_id"), Min("processed_at"), Max("processed_at")
    )
    for coupon_type, status, reason, number, first, last in counted:
        trails[coupon_type].add(reason or status, number, first, last)
    return trails


def published() -> Trails:
    """Of those in ``decided`` the ones whose events the relay has sent. Not within a transaction."""
    with transaction.atomic(durable=True):
        with connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        trails = decided()
        waiting = OutboxMessage.objects.filter(
            published_at=None, headers=None, event_type__in=[ISSUE_SUCCEEDED, ISSUE_FAILED]
        ).values_list("payload", flat=True)
        for payload in waiting.iterator(chunk_size=_CHUNK):
            try:
                result = msgspec.json.decode(bytes(payload or b""), type=IssueEnded)
            except (msgspec.MsgspecError, ValueError, RecursionError):
                # On its topic it cannot be read either.
                continue
            trails[result.coupon_type].ends[result.reason or result.status] -= 1
    return trails


def differing(told: Trails, *, before: Trails, after: Trails) -> set[str]:
    """The coupon types of which the topics tell less than was published before they were read, or more than PostgreSQL
    knew after it: what is under way meanwhile is no difference.
    """
    return {
        coupon_type
        for coupon_type in told.keys() | before.keys() | after.keys()
        if not before[coupon_type].ends <= told[coupon_type].ends <= after[coupon_type].ends
    }


def stock() -> dict[str, str]:
    """By coupon type what its row says of its stock, as text."""
    rows = Coupon.objects.annotate(held=Count("user_coupons", filter=~Q(user_coupons__status="REVOKED")))
    return {
        row.coupon_type: f"counter {row.issued} of {row.total_quantity}, {row.held} in users' hands" for row in rows
    }
