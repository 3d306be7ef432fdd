"""With many rows: every page and search reads by index, counts nothing, and understands or refuses any text."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from django.contrib.admin.utils import quote
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from pytest_django import DjangoDbBlocker

from orders.models import Product
from tests.admin.pages import html_of, messages_of, rows_of
from tests.support.factories import CouponFactory
from tests.support.plans import queries_of, reads_of

ROWS = 200_000
BIG = {
    "coupons_usercoupon", "coupons_issuerequest", "kafka_bridge_outboxmessage", "kafka_bridge_deadletter",
    "kafka_bridge_alert", "coupons_couponledgerentry", "coupons_notification", "orders_order", "orders_orderline",
    "orders_storedorder", "orders_orderminute",
}  # fmt: skip

COUPONS = "/admin/coupons/coupon/"
USER_COUPONS = "/admin/coupons/usercoupon/"
REQUESTS = "/admin/coupons/issuerequest/"
OUTBOX = "/admin/kafka_bridge/outboxmessage/"
DEAD_LETTERS = "/admin/kafka_bridge/deadletter/"
PRODUCTS = "/admin/orders/product/"
ORDERS = "/admin/orders/order/"
STORED_ORDERS = "/admin/orders/storedorder/"
MINUTES = "/admin/orders/orderminute/"
NOTIFICATIONS = "/admin/coupons/notification/"
ALERTS = "/admin/kafka_bridge/alert/"
LISTS = [
    COUPONS, USER_COUPONS, REQUESTS, NOTIFICATIONS, OUTBOX, DEAD_LETTERS, ALERTS, PRODUCTS, ORDERS, STORED_ORDERS,
    MINUTES,
]  # fmt: skip

FIRST_MINUTE = datetime(2026, 1, 1, tzinfo=UTC)

# Row n belongs to user n % 50,000 + 1: four rows each. Its UUID is n in hexadecimal.
_UUID = "lpad(to_hex(n), 32, '0')::uuid"
_USER = "n % 50000 + 1"
_FILL = f"""
    INSERT INTO coupons_usercoupon (id, coupon_id, user_id, status, issued_at)
    SELECT n, (n - 1) / 50000 + 1, {_USER}, 'ISSUED', now() FROM generate_series(1, {ROWS}) n;
    INSERT INTO coupons_issuerequest (request_id, coupon_id, coupon_type, user_id, status, user_coupon_id, source,
                                      processed_at, topic, partition, "offset")
    SELECT {_UUID}, (n - 1) / 50000 + 1, 'COUPON_1', {_USER}, 'SUCCESS', n, 'API', now(), 't', 0, n
    FROM generate_series(1, {ROWS}) n;
    INSERT INTO kafka_bridge_outboxmessage (id, event_id, event_type, topic, key, payload, shard, published_at)
    SELECT n, {_UUID}, 'coupon.issue.requested.v1', 't', 'k', '{{}}', 0, CASE WHEN n % 1000 > 0 THEN now() END
    FROM generate_series(1, {ROWS}) n;
    INSERT INTO kafka_bridge_deadletter (id, consumer_group, topic, partition, "offset", message_timestamp,
                                         event_type, event_id, payload, headers, error_class, error_message)
    SELECT n, CASE WHEN n % 10000 > 0 THEN 'issue' ELSE 'ranking' END, 't', 0, n, 0, 'e', {_UUID}, '{{', '[]', 'E', ''
    FROM generate_series(1, {ROWS}) n;
    INSERT INTO orders_order (id, user_id, status, total_amount, discount_amount, pay_amount, expires_at)
    SELECT n, {_USER}, 'PAID', 100, 0, 100, now() FROM generate_series(1, {ROWS}) n;
    INSERT INTO orders_orderline (order_id, product_id, name, unit_price, quantity)
    SELECT n, 1, 'Socks', 100, 1 FROM generate_series(1, {ROWS}) n;
    INSERT INTO coupons_couponledgerentry (user_coupon_id, order_id, step, cause)
    SELECT n, n, 'HELD', 'order created' FROM generate_series(1, {ROWS}) n;
    INSERT INTO coupons_notification (id, event_id, user_id, template_code, variables)
    SELECT n, {_UUID}, {_USER}, 'COUPON_ISSUED', '{{}}' FROM generate_series(1, {ROWS}) n;
    INSERT INTO kafka_bridge_alert (id, rule, severity, summary, runbook, ended_at)
    SELECT {_UUID}, 'rule ' || n, 'warning', '', '', CASE WHEN n % 10000 > 0 THEN now() END
    FROM generate_series(1, {ROWS}) n;
    INSERT INTO orders_storedorder (order_id, user_id, items, paid_at)
    SELECT n, {_USER}, '[]', now() FROM generate_series(1, {ROWS}) n;
    INSERT INTO orders_orderminute (minute, completed, cancelled, amount)
    SELECT '{FIRST_MINUTE}'::timestamptz + n * interval '1 minute', n, 0, 100 FROM generate_series(1, {ROWS}) n;
    UPDATE kafka_bridge_deadletter SET closed_at = now(), outcome = 'replayed' WHERE id % 20000 = 0;
    ANALYZE;
"""
_EMPTY = f"TRUNCATE coupons_coupon, orders_product, {', '.join(sorted(BIG))} RESTART IDENTITY CASCADE"


def minute(number: int) -> datetime:
    return FIRST_MINUTE + timedelta(minutes=number)


@pytest.fixture(scope="module")
def _many_rows(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> Iterator[None]:
    with django_db_blocker.unblock(), connection.cursor() as cursor:
        for number in range(1, 5):
            CouponFactory.create(id=number, coupon_type=f"COUPON_{number}", total_quantity=ROWS, issued=ROWS // 4)
        Product.objects.create(id=1, name="Socks", price=100)
        cursor.execute(_FILL)
        yield
        cursor.execute(_EMPTY)
        cursor.execute("VACUUM ANALYZE")


@pytest.fixture
def browser(_many_rows: None, db: None) -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("olga"))
    return client


def open_quickly(browser: Client, path: str, query: dict[str, str] | None = None) -> Any:
    """Opens a page, and proves that each of its queries counts nothing and reads big tables by index, a few rows."""
    with CaptureQueriesContext(connection) as queries:
        response = browser.get(path, query or {})
    html_of(response)
    statements = [query["sql"] for query in queries if query["sql"].startswith("SELECT")]
    assert 0 < len(statements) < 12, statements
    for statement in statements:
        assert "COUNT(" not in statement.upper()
        assert "DISTINCT" not in statement.upper()
    for read in reads_of(statements, BIG):
        assert read.node in ("Index Scan", "Index Only Scan", "Bitmap Heap Scan"), read.statement
        # As many rows of the outbox are not published.
        assert read.rows <= ROWS / 1000, (read.rows, read.statement)
    return response


@pytest.mark.parametrize("path", LISTS)
def test_a_list_opens_quickly_and_newest_first(browser: Client, path: str) -> None:
    response = open_quickly(browser, path)
    assert "results (" not in html_of(response)
    keys = [row.pk for row in rows_of(response)]
    assert keys == sorted(keys, reverse=True)
    assert len(keys) == 25 or path in (COUPONS, PRODUCTS)


@pytest.mark.parametrize(
    ("path", "text", "found"),
    [
        (COUPONS, "COUPON_3", [3]),
        (COUPONS, "COUPON", [4, 3, 2, 1]),
        (COUPONS, "2", [2]),
        (USER_COUPONS, "77", [150_076, 100_076, 50_076, 76]),
        (REQUESTS, str(UUID(int=150_076)), [UUID(int=150_076)]),
        (REQUESTS, UUID(int=150_076).hex.upper(), [UUID(int=150_076)]),
        (OUTBOX, f" {UUID(int=150_076)} ", [150_076]),
        (OUTBOX, "150076", [150_076]),
        (DEAD_LETTERS, str(UUID(int=150_076)), [150_076]),
        (DEAD_LETTERS, "150076", [150_076]),
        (PRODUCTS, "sock", [1]),
        (PRODUCTS, "1", [1]),
        (ORDERS, "77", [150_076, 100_076, 50_076, 77, 76]),
        (ORDERS, "150076", [150_076]),
        (NOTIFICATIONS, "77", [150_076, 100_076, 50_076, 76]),
        (NOTIFICATIONS, str(UUID(int=150_076)), [150_076]),
        (NOTIFICATIONS, "60000", []),
        (ALERTS, str(UUID(int=150_076)), [UUID(int=150_076)]),
        (STORED_ORDERS, "150076", [150_076]),
        (STORED_ORDERS, "200001", []),
        (MINUTES, "2026-01-01 03:04", [minute(184)]),
        (MINUTES, "2026-01-01T12:04:59.9+09:00", [minute(184)]),
        (MINUTES, "2025-12-31 23:59", []),
        (USER_COUPONS, "60000", []),
        (REQUESTS, str(UUID(int=ROWS + 1)), []),
    ],
)
def test_a_search_is_a_look_into_an_index(browser: Client, path: str, text: str, found: list[Any]) -> None:
    response = open_quickly(browser, path, {"q": text})
    assert [row.pk for row in rows_of(response)] == found
    assert messages_of(response) == []


@pytest.mark.parametrize(
    ("path", "row"),
    [
        (COUPONS, 3), (USER_COUPONS, 150_076), (REQUESTS, UUID(int=150_076)), (OUTBOX, 150_076),
        (DEAD_LETTERS, 150_076), (PRODUCTS, 1), (ORDERS, 150_076), (NOTIFICATIONS, 150_076),
        (ALERTS, UUID(int=150_076)), (STORED_ORDERS, 150_076), (MINUTES, quote(str(minute(150_076)))),
    ],
)  # fmt: skip
def test_a_row_opens_quickly(browser: Client, path: str, row: Any) -> None:
    open_quickly(browser, f"{path}{row}/change/")


@pytest.mark.parametrize(
    ("path", "query", "rows"),
    [
        (OUTBOX, {"published": "no"}, [ROWS - 1000 * n for n in range(25)]),
        (DEAD_LETTERS, {"group": "ranking"}, [ROWS - 10_000 * n for n in range(20)]),
        (DEAD_LETTERS, {"group": "issue"}, None),
        (DEAD_LETTERS, {"group": "no-such-group"}, []),
        (DEAD_LETTERS, {"topic": "t"}, None),
        (DEAD_LETTERS, {"topic": "no-such-topic"}, []),
        (DEAD_LETTERS, {"topic": "\0"}, []),
        (DEAD_LETTERS, {"error": "E"}, None),
        (DEAD_LETTERS, {"error": "no-such-error"}, []),
        (DEAD_LETTERS, {"group": "ranking", "error": "E"}, [ROWS - 10_000 * n for n in range(20)]),
        (DEAD_LETTERS, {"state": "open"}, None),
        (DEAD_LETTERS, {"state": "quarantined"}, []),
        (DEAD_LETTERS, {"state": "replayed"}, [ROWS - 20_000 * n for n in range(10)]),
        (DEAD_LETTERS, {"state": "discarded"}, []),
        (ALERTS, {"state": "open"}, [UUID(int=ROWS - 10_000 * n) for n in range(20)]),
        (ALERTS, {"state": "ended"}, [UUID(int=ROWS - n) for n in range(1, 26)]),
    ],
)
def test_a_filter_has_its_index(browser: Client, path: str, query: dict[str, str], rows: list[Any] | None) -> None:
    found = [row.pk for row in rows_of(open_quickly(browser, path, query))]
    assert found == rows or (rows is None and len(found) == 25)


def test_the_counts_above_the_dead_letters_read_a_bounded_number_by_index(browser: Client) -> None:
    statements = [text for text in queries_of(lambda: browser.get(DEAD_LETTERS)) if "count(*)" in text]
    reads = reads_of(statements, {"kafka_bridge_deadletter"})
    assert [(read.node, read.rows) for read in reads] == [("Index Scan", 10_001)]


NONSENSE = [
    "\0",
    "N\0L",
    "'; DROP TABLE--",
    "%",
    "쿠폰 🎟",
    "-1",
    "0",
    "9" * 19,
    "9" * 5000,
    "1e5",
    "٣",
    "{",
    "x" * 5000,
    "2026-02-30 00:00",
    "0001-01-01T00:00+23:59",
]


@pytest.mark.parametrize("path", LISTS)
def test_a_search_for_anything_else_finds_nothing_and_says_what_can_be_found(browser: Client, path: str) -> None:
    for text in NONSENSE:
        response = open_quickly(browser, path, {"q": text})
        assert rows_of(response) == [], text
        # Nearly any text can be a product's name, and "0" the beginning of a coupon type.
        if path not in (COUPONS, PRODUCTS) or "\0" in text:
            assert "Search by " in messages_of(response)[0], text


@pytest.mark.parametrize("path", LISTS)
def test_an_empty_search_is_the_list(browser: Client, path: str) -> None:
    assert rows_of(open_quickly(browser, path, {"q": "  "}))


@pytest.mark.parametrize("path", [path for path in LISTS if path not in (COUPONS, PRODUCTS)])
@pytest.mark.parametrize(
    "query", [{"o": "3"}, {"o": "-2.1"}, {"_facets": "True"}, {"all": ""}, {"p": "0"}, {"p": "-5"}, {"p": "x"}]
)
def test_no_address_makes_a_list_slow(browser: Client, path: str, query: dict[str, str]) -> None:
    assert rows_of(open_quickly(browser, path, query)) == rows_of(browser.get(path))


@pytest.mark.parametrize("path", LISTS)
@pytest.mark.parametrize("lookup", ["id__gt", "topic__icontains", "coupon__name__regex", "user_id"])
def test_no_address_filters_by_a_column(browser: Client, path: str, lookup: str) -> None:
    assert browser.get(path, {lookup: "1"}).status_code == 400


def test_pages_follow_each_other_up_to_a_limit(browser: Client) -> None:
    first, second = (rows_of(browser.get(ORDERS, {"p": page})) for page in ("1", "2"))
    assert [row.pk for row in first + second] == list(range(ROWS, ROWS - 50, -1))
    last = browser.get(ORDERS, {"p": "400"})
    assert [row.pk for row in rows_of(last)][-1] == ROWS - 10_000 + 1
    for beyond in ("401", "9" * 30):
        response = browser.get(ORDERS, {"p": beyond})
        assert rows_of(response) == rows_of(last)
        assert "The list ends with page 400" in messages_of(response)[0]


@pytest.mark.parametrize("path", LISTS)
@pytest.mark.parametrize("key", ["0", "x", "9" * 40, "_00", str(UUID(int=0)), "1/2"])
def test_a_row_that_is_not_there_leads_back_to_the_start(browser: Client, path: str, key: str) -> None:
    response = browser.get(f"{path}{key}/change/")
    assert (response.status_code, response["Location"]) == (302, "/admin/")
