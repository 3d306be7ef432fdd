"""Coupons on sale: whether requests for them were decided a moment ago."""

from __future__ import annotations

from collections.abc import Sequence

from django.db import connection
from django.db.models import Q

from kafka_bridge.models import OutboxMessage

from .messages import ISSUE_FAILED, ISSUE_SUCCEEDED, IssueTask
from .models import Coupon

RECENT_SECONDS = 10
# There is no index of decisions by time, so the newest rows of the outbox are looked at, by their primary key.
_NEWEST_ROWS = 20_000

# Results without a coupon, and copies of dead letters, name none. The first row says how far back the newest ones go.
_RECENTLY_DECIDED = f"""
    WITH newest AS (
        SELECT event_type, payload, headers, created_at > statement_timestamp() - interval '{RECENT_SECONDS} seconds'
               AS is_recent
        FROM {OutboxMessage._meta.db_table} ORDER BY id DESC LIMIT {_NEWEST_ROWS}
    )
    SELECT NULL, count(*) = {_NEWEST_ROWS} AND bool_and(is_recent) FROM newest
    UNION ALL
    SELECT DISTINCT convert_from(payload, 'UTF8')::jsonb ->> 'couponId', false FROM newest
    WHERE is_recent AND headers IS NULL AND event_type = ANY(%s)
"""


def sales_disturbed(tasks: Sequence[IssueTask]) -> list[str]:
    """Return for each request why locking its coupon for two seconds would delay a running sale, empty if not.

    A paused coupon, and a coupon without a decision in the last 10 s, is not on sale.
    """
    ids = {task.request.coupon_id for task in tasks if task.request.coupon_id is not None}
    types = {task.request.coupon_type for task in tasks if task.request.coupon_type is not None}
    named = list(Coupon.objects.filter(Q(id__in=ids) | Q(coupon_type__in=types), paused=False))
    on_sale = _on_sale([coupon.id for coupon in named]) if named else set()
    by_id = {coupon.id: coupon.coupon_type for coupon in named if coupon.id in on_sale}
    by_type = set(by_id.values())
    reasons = []
    for task in tasks:
        coupon_type = by_id.get(task.request.coupon_id or 0)
        if coupon_type is None and task.request.coupon_type in by_type:
            coupon_type = task.request.coupon_type
        reasons.append("" if coupon_type is None else _reason(coupon_type))
    return reasons


def _on_sale(coupon_ids: Sequence[int]) -> set[int]:
    with connection.cursor() as cursor:
        cursor.execute(_RECENTLY_DECIDED, [[ISSUE_SUCCEEDED, ISSUE_FAILED]])
        rows = cursor.fetchall()
    # With more rows in these seconds than are looked at, any coupon may be on sale.
    if any(is_beyond for _, is_beyond in rows):
        return set(coupon_ids)
    return {int(coupon_id) for coupon_id, _ in rows if coupon_id is not None}


def _reason(coupon_type: str) -> str:
    return (
        f"coupon {coupon_type} had decisions in the last {RECENT_SECONDS} s:"
        " pause it, or accept a delay of up to 2 s for its requests"
    )
