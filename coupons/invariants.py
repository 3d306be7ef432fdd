"""What must never happen to coupons, counted in PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from django.conf import settings
from django.db import connection

from kafka_bridge.client import group_lag
from kafka_bridge.outbox import anything_unpublished

from .handlers import ISSUE
from .messages import ISSUE_FAILED, ISSUE_REQUESTED, ISSUE_SUCCEEDED

_SHOWN = 20

# Each finds violations as lines of text; the letters are those of the guarantees in the README.
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
}

_OVERDUE = """
    SELECT o.event_id::text FROM kafka_bridge_outboxmessage o
    WHERE o.event_type = %s AND o.headers IS NULL
      AND o.created_at < statement_timestamp() - %s * interval '1 second'
      AND NOT EXISTS (SELECT 1 FROM coupons_issuerequest r WHERE r.request_id = o.event_id)
    ORDER BY o.id
"""


def violations() -> Iterator[tuple[str, list[str]]]:
    """Each invariant's name with a line per violation, none if it holds; at most 20 lines and a count."""
    names = {"succeeded": ISSUE_SUCCEEDED, "failed": ISSUE_FAILED}
    for name, query in _QUERIES.items():
        # format() of PostgreSQL and the driver both know "%s": only the named placeholders are the driver's.
        yield name, _lines(query.replace("%s", "%%s"), names)
    yield "I1 every accepted request is answered", overdue_requests()


def overdue_requests(lag: Callable[[], int] | None = None) -> list[str]:
    """Requests PENDING past ``REQUEST_DEADLINE_SECONDS`` although relay and issuer have nothing left to do.

    ``lag`` tells the issuer's lag in messages; by default Kafka is asked. Raises ServiceUnavailable if it is away.
    """
    overdue = _lines(_OVERDUE, [ISSUE_REQUESTED, settings.REQUEST_DEADLINE_SECONDS])
    if not overdue or anything_unpublished():
        return []
    return overdue if (lag or _issuer_lag)() == 0 else []


def _issuer_lag() -> int:
    return group_lag(ISSUE.group_id, ISSUE.topics)


def _lines(query: str, values: Any) -> list[str]:
    with connection.cursor() as cursor:
        cursor.execute(query, values)
        lines = [line for (line,) in cursor.fetchmany(_SHOWN)]
        more = cursor.rowcount - len(lines)
    return [*lines, f"and {more} more"] if more > 0 else lines
