"""With many rows every page reads by index, in a bounded number of queries."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django_redis import get_redis_connection
from pytest_django import DjangoDbBlocker

from tests.support.factories import CouponFactory
from tests.support.plans import reads_of

ROWS = 40_000
BIG = {
    "coupons_usercoupon", "coupons_issuerequest", "coupons_reservation", "coupons_notification",
    "coupons_couponledgerentry", "kafka_bridge_outboxmessage", "kafka_bridge_deadletter",
    "kafka_bridge_processedevent", "kafka_bridge_alert", "orders_order", "orders_orderline", "orders_storedorder",
}  # fmt: skip
FIRST = datetime(2026, 1, 1, tzinfo=UTC)

# Request n is made at millisecond n, decided a tenth of a second later by the event of the next odd id.
_MADE = "lpad(to_hex({first} + n), 12, '0')"
_REQUEST = f"({_MADE.format(first=int(FIRST.timestamp() * 1000))} || '70008' || lpad(to_hex(n), 15, '0'))::uuid"
_EVENT = f"({_MADE.format(first=int(FIRST.timestamp() * 1000) + 100)} || '7fff8' || lpad(to_hex(n), 15, '0'))::uuid"
_TIME = f"'{FIRST.isoformat()}'::timestamptz + n * interval '1 ms'"
_FILL = f"""
    INSERT INTO coupons_usercoupon (id, coupon_id, user_id, status, issued_at)
    SELECT n, 1, n, 'ISSUED', {_TIME} + interval '100 ms' FROM generate_series(1, {ROWS}) n;
    INSERT INTO coupons_issuerequest (request_id, coupon_id, coupon_type, user_id, status, user_coupon_id, source,
                                      processed_at, topic, partition, "offset")
    SELECT {_REQUEST}, 1, 'COUPON_1', n, 'SUCCESS', n, 'API', {_TIME} + interval '100 ms', 'coupon-issue-request', 0, n
    FROM generate_series(1, {ROWS}) n;
    INSERT INTO kafka_bridge_outboxmessage (event_id, event_type, topic, key, payload, shard, created_at)
    SELECT {_REQUEST}, 'coupon.issue.requested.v1', 'coupon-issue-request', 'COUPON_1',
           convert_to('{{"userId":' || n || ',"couponId":1}}', 'UTF8'), 0, {_TIME} FROM generate_series(1, {ROWS}) n;
    INSERT INTO kafka_bridge_outboxmessage (event_id, event_type, topic, key, payload, shard, created_at)
    SELECT {_EVENT}, 'coupon.issue.succeeded.v1', 'coupon-issue-response', 'COUPON_1',
           convert_to('{{"requestId":"' || {_REQUEST} || '","userCouponId":' || n || ',"userId":1}}', 'UTF8'), 0,
           {_TIME}
    FROM generate_series(1, {ROWS}) n;
    INSERT INTO kafka_bridge_processedevent (consumer_group, event_id)
    SELECT 'results', {_EVENT} FROM generate_series(1, {ROWS}) n;
    INSERT INTO coupons_notification (event_id, user_id, template_code, variables)
    SELECT {_EVENT}, n, 'COUPON_ISSUED', '{{}}' FROM generate_series(1, {ROWS}) n;
    INSERT INTO coupons_reservation (request_id, coupon_id, user_id, admission)
    SELECT gen_random_uuid(), 1, n, 'gate' FROM generate_series(1, {ROWS // 10}) n;
    INSERT INTO kafka_bridge_deadletter (consumer_group, topic, partition, "offset", message_timestamp,
                                         event_type, event_id, payload, headers, error_class, error_message, closed_at)
    SELECT 'issue', 't', 0, n, 0, 'e', {_EVENT}, '{{', '[]', 'E', '', now() FROM generate_series(1, {ROWS}) n;
    INSERT INTO kafka_bridge_alert (id, rule, severity, summary, runbook, ended_at)
    SELECT {_EVENT}, 'rule ' || n, 'warning', '', '', now() FROM generate_series(1, {ROWS}) n;
    INSERT INTO orders_order (id, user_id, status, total_amount, discount_amount, pay_amount, expires_at,
                              completed_event_id)
    SELECT n, n, 'PAID', 100, 0, 100, now(), {_EVENT} FROM generate_series(1, {ROWS}) n;
    INSERT INTO orders_orderline (order_id, product_id, name, unit_price, quantity)
    SELECT n, 1, 'Socks', 100, 1 FROM generate_series(1, {ROWS}) n;
    INSERT INTO coupons_couponledgerentry (user_coupon_id, order_id, step, cause)
    SELECT n, n, 'HELD', 'order created' FROM generate_series(1, {ROWS}) n;
    INSERT INTO orders_storedorder (order_id, user_id, items, paid_at)
    SELECT n, n, '[]', now() FROM generate_series(1, {ROWS}) n;
    INSERT INTO orders_product (id, name, price) VALUES (1, 'Socks', 100);
    INSERT INTO kafka_bridge_relaylease (shard, position, sent_through) VALUES (0, 1000000000, 1000000000);
    ANALYZE;
"""
_FILLED = ["coupons_coupon", "orders_product", "kafka_bridge_relaylease", *sorted(BIG)]
_EMPTY = f"TRUNCATE {', '.join(_FILLED)} RESTART IDENTITY CASCADE"
# The search for the event of a result reads the rows of about the same moment.
_MOST_READ = 20_000
_MOST_QUERIES = 25


def request_id(number: int) -> UUID:
    made = FIRST + timedelta(milliseconds=number)
    return UUID(f"{round(made.timestamp() * 1000):012x}70008{number:015x}")


@pytest.fixture(scope="module")
def _many_rows(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> Iterator[None]:
    with django_db_blocker.unblock(), connection.cursor() as cursor:
        CouponFactory.create(id=1, coupon_type="COUPON_1", total_quantity=ROWS, issued=ROWS)
        cursor.execute(_FILL)
        yield
        cursor.execute(_EMPTY)
        cursor.execute("VACUUM ANALYZE")


@pytest.fixture
def browser(_many_rows: None, db: None, redis_flushed: None) -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("olga"))
    return client


def open_quickly(browser: Client, path: str, query: dict[str, str] | None = None, status: int = 200) -> Any:
    """Opens a page, and proves that each of its queries reads big tables by index, and few rows."""
    with CaptureQueriesContext(connection) as queries:
        response = browser.get(path, query or {})
    assert response.status_code == status, response.content
    statements = [query["sql"] for query in queries if query["sql"].lstrip().startswith(("SELECT", "WITH"))]
    assert 0 < len(statements) <= _MOST_QUERIES, len(statements)
    for read in reads_of(statements, BIG):
        assert read.node in ("Index Scan", "Index Only Scan", "Bitmap Heap Scan"), read.statement
        assert read.rows <= _MOST_READ, read.statement
    return response


def test_a_request_is_read_by_index(browser: Client) -> None:
    page = open_quickly(browser, f"/ops/requests/{request_id(30_000)}")
    states = {step.name: step.state for step in page.context["steps"]}
    assert (states["Result event"], states["User notified"]) == ("done", "done")
    assert page.context["trace"].notification.user_id == 30_000


def test_an_undecided_request_behind_all_others_is_read_by_index(browser: Client) -> None:
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM coupons_issuerequest WHERE request_id = %s", [request_id(39_000)])
        cursor.execute(
            "UPDATE kafka_bridge_relaylease SET sent_through = 0, owner = NULL, expires_at = now() + interval '1 hour'"
        )
    page = open_quickly(browser, f"/ops/requests/{request_id(39_000)}")
    assert page.context["trace"].problem.cause == "relay-down"


def test_an_unknown_request_is_looked_up_by_index(browser: Client) -> None:
    open_quickly(browser, f"/ops/requests/{request_id(ROWS + 1)}", status=404)


def test_an_event_that_is_not_there_is_searched_among_few_rows(browser: Client) -> None:
    with connection.cursor() as cursor:
        cursor.execute("UPDATE coupons_usercoupon SET issued_at = issued_at - interval '50 s' WHERE id = 39000")
    open_quickly(browser, "/ops/requests/of-coupon/39000", status=404)


def test_the_request_of_a_coupon_is_found_by_index(browser: Client) -> None:
    page = open_quickly(browser, "/ops/requests/of-coupon/30000", status=302)
    assert page["Location"] == f"/ops/requests/{request_id(30_000)}"


def test_a_user_is_searched_by_index(browser: Client) -> None:
    get_redis_connection("default").set("recent-requests:7", request_id(7).bytes)
    found = open_quickly(browser, "/ops/requests", {"q": "7"}).context["found"]
    assert ([row.id for row in found.coupons], len(found.undecided)) == ([7], 1)
    assert [row.request_id for row in found.recent] == [request_id(7)]


def test_an_order_is_read_by_index(browser: Client) -> None:
    page = open_quickly(browser, "/ops/orders/30000")
    assert page.context["trace"].stored is not None
