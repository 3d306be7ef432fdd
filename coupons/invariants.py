"""The invariants of coupons, checked in PostgreSQL; I6 compares Redis with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from django.conf import settings
from django.db import connection
from redis.exceptions import RedisError

from common.postgres.clock import database_time
from kafka_bridge.client import group_lag
from kafka_bridge.outbox.published import is_published_sql

from . import policy
from .consumer_groups import ISSUE
from .issuance import status_cache
from .messages import ISSUE_FAILED, ISSUE_REQUESTED, ISSUE_SUCCEEDED
from .models import IssueRequest
from .redis_queue import TRANSPORT

_MAX_LINES = 20
_MAX_COMPARED = 100

_STATUS_AFTER = ", ".join(f"('{step}', '{status}')" for step, status in policy.STATUS_AFTER.items())
_POSSIBLE_STEPS = ", ".join(
    f"('{before}', '{step}')"
    for before, step in (
        ("", policy.HELD),
        (policy.RELEASED, policy.HELD),
        (policy.RETURNED_TO_USER, policy.HELD),
        (policy.HELD, policy.USED),
        (policy.HELD, policy.RELEASED),
        (policy.USED, policy.RETURNED_TO_USER),
        (policy.USED, policy.RETURNED_TO_POOL),
        (policy.USED, policy.BURNED),
    )
)
# Each query returns a line of text per violation. I1 to I8 are the guarantees in the README.
_QUERIES = {
    "I2 issued and reserved are within the stock": """
        SELECT format('coupon %s: %s issued + %s reserved of %s', c.coupon_type, count(u.id), c.reserved,
                      c.total_quantity)
        FROM coupons_coupon c LEFT JOIN coupons_usercoupon u ON u.coupon_id = c.id AND u.status <> 'REVOKED'
        GROUP BY c.id HAVING count(u.id) + c.reserved > c.total_quantity
    """,
    "I2 the counter of issued coupons is right": """
        SELECT format('coupon %s: counter says %s, there are %s', c.coupon_type, c.issued, count(u.id))
        FROM coupons_coupon c LEFT JOIN coupons_usercoupon u ON u.coupon_id = c.id AND u.status <> 'REVOKED'
        GROUP BY c.id HAVING count(u.id) <> c.issued
    """,
    "I2 the counter of reserved coupons is right": """
        SELECT format('coupon %s: counter says %s, %s requests hold a unit', c.coupon_type, c.reserved,
                      count(r.request_id))
        FROM coupons_coupon c LEFT JOIN coupons_reservation r ON r.coupon_id = c.id AND r.admission = 'reserve'
        GROUP BY c.id HAVING count(r.request_id) <> c.reserved
    """,
    "I2 reservations end with their requests": """
        SELECT format('request %s: %s', v.request_id, CASE WHEN r.request_id IS NULL THEN 'no such request'
                      ELSE 'decided and still reserved' END)
        FROM coupons_reservation v
             LEFT JOIN coupons_issuerequest r USING (request_id)
             LEFT JOIN kafka_bridge_outboxmessage o ON o.event_id = v.request_id
        WHERE r.request_id IS NOT NULL OR o.event_id IS NULL
    """,
    "I3 one coupon per user": """
        SELECT format('user %s has coupon %s %s times', user_id, coupon_id, count(*))
        FROM coupons_usercoupon GROUP BY user_id, coupon_id HAVING count(*) > 1
    """,
    "I1 every SUCCESS has its coupon": """
        SELECT format('request %s: no coupon %s of user %s', r.request_id, r.coupon_id, r.user_id)
        FROM coupons_issuerequest r LEFT JOIN coupons_usercoupon u
          ON u.id = r.user_coupon_id AND u.coupon_id = r.coupon_id AND u.user_id = r.user_id
        WHERE r.status = 'SUCCESS' AND u.id IS NULL
    """,
    "I1 every coupon has one SUCCESS": """
        SELECT format('coupon %s of user %s: %s requests ended with it', u.coupon_id, u.user_id, count(r.request_id))
        FROM coupons_usercoupon u LEFT JOIN coupons_issuerequest r
          ON r.user_coupon_id = u.id AND r.status = 'SUCCESS'
        GROUP BY u.id HAVING count(r.request_id) <> 1
    """,
    "I1 a request has one result event": """
        SELECT format('request %s: %s result events', body ->> 'requestId', count(*))
        FROM (
            SELECT convert_from(payload, 'UTF8')::jsonb AS body FROM kafka_bridge_outboxmessage
            WHERE event_type IN (%(succeeded)s, %(failed)s) AND headers IS NULL
        ) AS event
        GROUP BY body ->> 'requestId' HAVING count(*) > 1
    """,
    "I3 the ledger determines the state of every coupon": f"""
        SELECT format('coupon %s of user %s is %s, its ledger says %s', u.coupon_id, u.user_id, u.status,
                      coalesce(latest.step, 'nothing'))
        FROM coupons_usercoupon u
        LEFT JOIN (
            SELECT DISTINCT ON (user_coupon_id) user_coupon_id, step FROM coupons_couponledgerentry
            ORDER BY user_coupon_id, id DESC
        ) AS latest ON latest.user_coupon_id = u.id
        LEFT JOIN (VALUES {_STATUS_AFTER}) AS known (step, status) ON known.step = latest.step
        WHERE u.status <> coalesce(known.status, 'ISSUED')
    """,
    "I3 a coupon is used by one order at a time": f"""
        SELECT format('coupon %s of user %s: %s by order %s after %s', u.coupon_id, u.user_id, step, order_id,
                      coalesce(before || ' by order ' || order_before, 'nothing'))
        FROM (
            SELECT *, lag(step) OVER way AS before, lag(order_id) OVER way AS order_before
            FROM coupons_couponledgerentry WINDOW way AS (PARTITION BY user_coupon_id ORDER BY id)
        ) AS entry
        LEFT JOIN coupons_usercoupon u ON u.id = user_coupon_id
        WHERE (coalesce(before, ''), step) NOT IN (VALUES {_POSSIBLE_STEPS})
           OR (step <> 'HELD' AND order_id <> order_before)
    """,
    "I8 no request ends SOLD_OUT while there is stock": """
        SELECT format('request %s: coupon %s had %s left', request_id, coupon_type, remaining)
        FROM coupons_issuerequest WHERE reason = 'SOLD_OUT' AND remaining > 0
    """,
}

_OVERDUE = f"""
    SELECT o.event_id::text FROM kafka_bridge_outboxmessage o
    WHERE o.event_type = %s AND o.headers IS NULL AND o.created_at < %s
      AND NOT (o.topic = %s AND EXISTS (SELECT FROM coupons_reservation v WHERE v.request_id = o.event_id))
      AND NOT EXISTS (SELECT 1 FROM coupons_issuerequest r WHERE r.request_id = o.event_id)
      AND {is_published_sql("o")}
    ORDER BY o.id
"""


def violations() -> Iterator[tuple[str, list[str]]]:
    """Yield (name, violations) per invariant. Violations are at most 20 lines and a count, none if it holds."""
    yield from named_lines(_QUERIES, {"succeeded": ISSUE_SUCCEEDED, "failed": ISSUE_FAILED})
    yield "I1 I5 every accepted request has a result", overdue_requests()
    yield "I6 cached statuses agree with PostgreSQL", wrong_views()


def overdue_requests(lag: Callable[[], int] | None = None) -> list[str]:
    """List requests PENDING past ``REQUEST_DEADLINE_SECONDS`` though relay, issuer and issue worker have no work left.

    A request of the issue worker counts only without a reservation: the worker finds it by its reservation, if late.
    ``lag`` returns the issuer's lag in messages; by default Kafka is asked. At most 20 lines and a count. Raises
    ServiceUnavailable if Kafka is needed and away.
    """
    lag = lag or partial(group_lag, ISSUE.group_id, ISSUE.topics)
    return lines_at_rest(_OVERDUE, [ISSUE_REQUESTED, deadline(), TRANSPORT], lag)


def wrong_views() -> list[str]:
    """Return a line for each of the last 100 decided requests whose cached status is wrong.

    Statuses that are not cached are skipped; the list is empty while Redis is away.
    """
    requests = list(IssueRequest.objects.order_by("-processed_at")[:_MAX_COMPARED])
    try:
        cached = status_cache.read_entries([request.request_id for request in requests])
    except RedisError:
        return []
    wrong = []
    for request in requests:
        if request.request_id not in cached:
            continue
        status = cached[request.request_id]
        if status is None:
            wrong.append(f"request {request.request_id}: unreadable in Redis, {request.status} in PostgreSQL")
        elif (status.status, status.reason) != (request.status, request.reason):
            wrong.append(f"request {request.request_id}: {status.status} in Redis, {request.status} in PostgreSQL")
    return wrong


def deadline() -> datetime:
    """Return the time before which accepted requests are overdue, by the database's clock."""
    return database_time() - timedelta(seconds=settings.REQUEST_DEADLINE_SECONDS)


def named_lines(queries: Mapping[str, str], values: Mapping[str, str]) -> Iterator[tuple[str, list[str]]]:
    """Yield the name of each of ``queries`` with its lines of text, see ``query_lines``."""
    for name, query in queries.items():
        # PostgreSQL's format() and the driver both use "%s": the driver gets only the named placeholders.
        yield name, query_lines(query.replace("%s", "%%s"), values)


def lines_at_rest(query: str, values: Any, lag: Callable[[], int]) -> list[str]:
    """Return the lines of ``query``, which is of published events, as ``query_lines``; none while some are in transit.

    In transit are the messages that ``lag`` counts; it is called only if there are lines.
    """
    if not query_lines(query, values) or lag() != 0:
        return []
    # Query again: what was in transit at the first query has arrived since the lag was 0.
    return query_lines(query, values)


def query_lines(query: str, values: Any) -> list[str]:
    """Return the only column that ``query`` selects, text; at most 20 lines and a count of the rest."""
    with connection.cursor() as cursor:
        cursor.execute(query, values)
        lines = [line for (line,) in cursor.fetchmany(_MAX_LINES)]
        more = cursor.rowcount - len(lines)
    return [*lines, f"and {more} more"] if more > 0 else lines
