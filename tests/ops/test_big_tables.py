"""With many rows: every page makes a bounded number of queries, and none reads a big table as a whole."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from pytest_django import DjangoDbBlocker

from tests.admin.pages import html_of
from tests.support.plans import reads_of

ROWS = 100_000
# What is counted at most, see kafka_bridge.outbox.state and kafka_bridge.operating.dead_letter_counts.
MOST_READ = 10_001
MOST_QUERIES = 25
BIG = {
    "kafka_bridge_outboxmessage", "kafka_bridge_deadletter", "kafka_bridge_alert", "kafka_bridge_heldmessage",
    "kafka_bridge_operatoraction", "coupons_issuerequest",
}  # fmt: skip

_UUID = "lpad(to_hex(n), 32, '0')::uuid"
# Half of the outbox waits, half of the dead letters are open, and few of the alerts.
_FILL = f"""
    INSERT INTO kafka_bridge_outboxmessage (id, event_id, event_type, topic, key, payload, shard)
    SELECT n, {_UUID}, 'coupon.issue.requested.v1', 't', 'k', '{{}}', n % 64 FROM generate_series(1, {ROWS}) n;
    INSERT INTO kafka_bridge_relaylease (shard, position, sent_through)
    SELECT n, {ROWS // 2}, {ROWS // 2} FROM generate_series(0, 63) n;
    INSERT INTO kafka_bridge_heldmessage (message_id, shard, topic, reason)
    SELECT n, n % 64, 't', CASE WHEN n % 2 = 0 THEN 'topic' ELSE 'key' END FROM generate_series(1, {ROWS}) n;
    INSERT INTO kafka_bridge_operatoraction (id, actor, action, subject)
    SELECT n, CASE WHEN n = 1 THEN 'olga' ELSE 'victor' END, 'action-' || n % 7, 'subject ' || n % 1000
    FROM generate_series(1, {ROWS}) n;
    INSERT INTO kafka_bridge_deadletter (id, consumer_group, topic, partition, "offset", message_timestamp,
                                         event_type, event_id, payload, headers, error_class, error_message, closed_at)
    SELECT n, 'group ' || n % 7, 't', 0, n, 0, 'e', {_UUID}, '{{', '[]', 'E' || n % 11, '',
           CASE WHEN n % 2 = 0 THEN now() END
    FROM generate_series(1, {ROWS}) n;
    INSERT INTO kafka_bridge_alert (id, rule, severity, summary, runbook, ended_at)
    SELECT {_UUID}, CASE WHEN n % 5000 = 0 THEN 'open-' || n ELSE 'rule-' || n % 40 END, 'warning', '',
           'docs/operations.md', CASE WHEN n % 5000 > 0 THEN now() - n * interval '1 second' END
    FROM generate_series(1, {ROWS}) n;
    INSERT INTO coupons_issuerequest (request_id, coupon_id, coupon_type, user_id, status, source, processed_at, topic,
                                      partition, "offset")
    SELECT {_UUID}, 1, 'COUPON', n, 'SUCCESS', 'API', now(), 't', 0, n FROM generate_series(1, {ROWS}) n;
    INSERT INTO coupons_coupon (coupon_type, name, admission, discount_type, discount_value, min_order_amount,
                                total_quantity, reserved, issued, paused, refund_policy)
    SELECT 'COUPON_' || n, '', CASE WHEN n % 2 = 0 THEN 'gate' ELSE 'queue' END, 'FIXED', 1, 0, 10, 0, 0, false, 'BURN'
    FROM generate_series(1, 300) n;
    INSERT INTO kafka_bridge_processheartbeat (id, role, host, pid, started_at, seen_at, turned_at)
    SELECT {_UUID}, 'issuer', 'box', n, now(), now(), now() FROM generate_series(1, 40) n;
    ANALYZE;
"""
_EMPTY = (
    f"TRUNCATE {', '.join(sorted(BIG))}, kafka_bridge_relaylease, kafka_bridge_processheartbeat, coupons_coupon"
    " RESTART IDENTITY CASCADE"
)


@pytest.fixture(scope="module")
def _many_rows(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> Iterator[None]:
    with django_db_blocker.unblock(), connection.cursor() as cursor:
        cursor.execute(_FILL)
        yield
        cursor.execute(_EMPTY)
        cursor.execute("VACUUM ANALYZE")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/ops/", ["at least 10,000", "more than 10,000", "open-5000", "COUPON_300"]),
        ("/ops/panels", ["at least 10,000"]),
        ("/ops/alerts", ["rule-1", "open-5000"]),
        ("/ops/alerts?rule=rule-3", ["rule-3", "rule-39"]),
        ("/ops/alerts?rule=no-such-rule", ["None is kept."]),
        ("/ops/processes", ["issuer"]),
        ("/ops/holds", ["more than 10,000"]),
        ("/ops/audit", ["subject 999"]),
        ("/ops/audit?below=50000", ["subject 999"]),
        ("/ops/audit?actor=olga", ["subject 1<"]),
        ("/ops/audit?actor=nobody", ["No action was recorded"]),
        ("/ops/audit?action=action-3", ["action-3"]),
        ("/ops/audit?subject=subject+77&below=50000", ["subject 77"]),
        # No row has both: what is read ends with its limit.
        ("/ops/audit?actor=victor&action=no-such-action", ["Nothing among the last 2,000"]),
        ("/ops/blocks", ["COUPON_300"]),
    ],
)
@pytest.mark.usefixtures("_many_rows")
def test_a_page_reads_little_however_much_there_is(viewer: Client, path: str, words: list[str]) -> None:
    html_of(viewer.get(path))  # What is read once per process.
    with CaptureQueriesContext(connection) as queries:
        page = html_of(viewer.get(path))
    for word in words:
        assert word in page
    assert len(queries) <= MOST_QUERIES
    statements = [text for query in queries if (text := query["sql"].strip()).startswith(("SELECT", "WITH"))]
    for read in reads_of(statements, BIG):
        assert read.node != "Seq Scan", read.statement
        assert read.rows <= MOST_READ, (read.rows, read.statement)
