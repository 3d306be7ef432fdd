"""What the relay reads must not grow with what was ever published, nor with how large the rows are."""

from typing import Any

import pytest
from django.db import connection

from common.postgres import arrays
from kafka_bridge.relaying.reading import BATCH_BYTES, IN_INDEX_ORDER, read_sql

pytestmark = pytest.mark.django_db(transaction=True)

PUBLISHED = 300_000


def insert_rows(count: int, *, payload: str = "{}") -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            """
            INSERT INTO kafka_bridge_outboxmessage (id, event_id, event_type, topic, key, payload, traceparent, shard)
            SELECT n, gen_random_uuid(), 'stub.number.drawn.v1', 'stub-numbers', '1', convert_to(%s, 'UTF8'),
                   '', n %% 64
            FROM generate_series(1, %s) AS n
            """,
            [payload, count],
        )


@pytest.fixture
def published_rows() -> None:
    """Rows that a position passed, and 100 above it, of which the first five are a gap."""
    insert_rows(PUBLISHED + 100)


def values(**changed: Any) -> dict[str, Any]:
    first = arrays.numbers([PUBLISHED + 1])
    last = arrays.numbers([PUBLISHED + 5])
    return {
        "sent_through": PUBLISHED, "firsts": first, "lasts": last, "shards": arrays.numbers(range(32)), "limit": 500,
        "bytes": BATCH_BYTES,
    } | changed  # fmt: skip


def plan(query: str, values: dict[str, Any]) -> dict[str, Any]:
    with connection.cursor() as cursor:
        cursor.execute(f"{IN_INDEX_ORDER} EXPLAIN (FORMAT JSON, ANALYZE, BUFFERS) {query}", values)
        (plans,) = cursor.fetchall()
    node: dict[str, Any] = plans[0][0]["Plan"]
    return node


@pytest.mark.parametrize("analyzed", [False, True], ids=["without statistics", "with statistics"])
@pytest.mark.parametrize("holds_all", [True, False], ids=["every shard", "half of the shards"])
@pytest.mark.parametrize("has_gaps", [True, False], ids=["with a gap", "without gaps"])
@pytest.mark.usefixtures("published_rows")
def test_only_unsent_rows_are_read(has_gaps: bool, holds_all: bool, analyzed: bool) -> None:
    if analyzed:
        with connection.cursor() as cursor:
            cursor.execute("ANALYZE kafka_bridge_outboxmessage")
    sent_through = PUBLISHED + 5 if has_gaps else PUBLISHED
    node = plan(read_sql(has_gaps=has_gaps, holds_all=holds_all), values(sent_through=sent_through))
    assert node["Actual Rows"] == 100
    assert node["Shared Hit Blocks"] + node["Shared Read Blocks"] < 120


@pytest.mark.parametrize("has_gaps", [True, False], ids=["with a gap", "without gaps"])
def test_of_a_backlog_that_has_no_statistics_only_a_batch_is_read(has_gaps: bool) -> None:
    # With many more rows, or much smaller ones, PostgreSQL goes by the index anyway.
    insert_rows(30_000, payload="x" * 250)
    with connection.cursor() as cursor:
        # Of another test.
        cursor.execute("DELETE FROM pg_statistic WHERE starelid = 'kafka_bridge_outboxmessage'::regclass")
    backlog = values(sent_through=5, firsts=arrays.numbers([1]), lasts=arrays.numbers([5]))
    node = plan(read_sql(has_gaps=has_gaps, holds_all=True), backlog)
    assert node["Actual Rows"] == 500
    assert node["Shared Hit Blocks"] + node["Shared Read Blocks"] < 120


def test_a_read_ends_at_its_bytes_but_has_one_row_at_least() -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            """
            INSERT INTO kafka_bridge_outboxmessage (event_id, event_type, topic, key, payload, traceparent, shard)
            SELECT gen_random_uuid(), 'stub.number.drawn.v1', 'stub-numbers', '1',
                   CASE WHEN n <> 2 THEN convert_to(repeat('x', 1000), 'UTF8') END, '', n % 64
            FROM generate_series(1, 10) AS n
            """
        )
    lengths = {}
    for limit in (1, 2500, 100_000):
        with connection.cursor() as cursor:
            cursor.execute(
                read_sql(has_gaps=False, holds_all=True), values(sent_through=0, limit=500) | {"bytes": limit}
            )
            lengths[limit] = len(cursor.fetchall())
    # The second row has no payload.
    assert lengths == {1: 1, 2500: 4, 100_000: 10}
