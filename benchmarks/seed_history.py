"""Old rows, as a service has them after months of sales; they must not slow it down."""

from __future__ import annotations

from django.db import connection

from coupons.models import Coupon

from .temporary import mark_outbox_published

# Large enough to be fast, small enough that Ctrl-C takes effect soon.
_ROWS_AT_ONCE = 200_000

_OUTBOX = """
    INSERT INTO kafka_bridge_outboxmessage
        (event_id, event_type, topic, key, payload, traceparent, shard, created_at)
    SELECT uuidv7(interval '-1 day'), 'coupon.issue.succeeded.v1', 'coupon-issue-response', %(type)s::bytea,
           convert_to(repeat('x', 250), 'UTF8'), '', n %% 64, now() - interval '1 day'
    FROM generate_series(%(first)s, %(last)s) AS n
"""
_USER_COUPONS = """
    INSERT INTO coupons_usercoupon (coupon_id, user_id, status, issued_at)
    SELECT %(id)s, 1000000000 + n, 'ISSUED', now() - interval '1 day' FROM generate_series(%(first)s, %(last)s) AS n
"""
_REQUESTS = """
    INSERT INTO coupons_issuerequest
        (request_id, coupon_id, coupon_type, user_id, status, source, processed_at, topic, partition, "offset")
    SELECT uuidv7(interval '-1 day'), %(id)s, %(type)s, 1000000000 + n, 'SUCCESS', 'API', now() - interval '1 day',
           'coupon-issue-request', 0, n
    FROM generate_series(%(first)s, %(last)s) AS n
"""
# As autovacuum would do, which otherwise starts during a measurement.
_SETTLE = "VACUUM (ANALYZE) kafka_bridge_outboxmessage, coupons_usercoupon, coupons_issuerequest"


def add(coupon: Coupon, rows: int) -> None:
    """Insert ``rows`` published outbox rows, user coupons and decided requests each."""
    with connection.cursor() as cursor:
        for first in range(1, rows + 1, _ROWS_AT_ONCE):
            last = min(first + _ROWS_AT_ONCE - 1, rows)
            values: dict[str, str | int] = {
                "id": coupon.id,
                "type": coupon.coupon_type,
                "first": first,
                "last": last,
            }
            for statement in (_OUTBOX, _USER_COUPONS, _REQUESTS):
                cursor.execute(statement, values)
        cursor.execute(_SETTLE)
    mark_outbox_published()
