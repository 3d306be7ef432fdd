"""What the relay reads must not grow with what was ever published."""

from typing import Any

import pytest
from django.db import connection

from kafka_bridge.relaying import relay

pytestmark = pytest.mark.django_db(transaction=True)

PUBLISHED = 300_000


@pytest.fixture
def published_rows() -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            """
            INSERT INTO kafka_bridge_outboxmessage
                (event_id, event_type, topic, key, payload, traceparent, shard, published_at)
            SELECT gen_random_uuid(), 'stub.number.drawn.v1', 'stub-numbers', '1', '{}', '', n %% 64,
                   CASE WHEN n <= %s THEN now() END
            FROM generate_series(1, %s + 100) AS n
            """,
            [PUBLISHED, PUBLISHED],
        )


def plan(query: str, values: list[Any]) -> dict[str, Any]:
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (FORMAT JSON, ANALYZE, BUFFERS) {query}", values)
        (plans,) = cursor.fetchall()
    node: dict[str, Any] = plans[0][0]["Plan"]
    return node


def scan(node: dict[str, Any]) -> dict[str, Any]:
    return scan(node["Plans"][0]) if "Plans" in node else node


@pytest.mark.parametrize("analyzed", [False, True], ids=["without statistics", "with statistics"])
@pytest.mark.parametrize(
    ("query", "values"),
    [(relay._SELECT_ALL, [0, 500]), (relay._SELECT_SHARDS, [0, list(range(32)), 500])],
    ids=["every shard", "half of the shards"],
)
@pytest.mark.usefixtures("published_rows")
def test_only_unpublished_rows_are_read(query: str, values: list[Any], analyzed: bool) -> None:
    if analyzed:
        with connection.cursor() as cursor:
            cursor.execute("ANALYZE kafka_bridge_outboxmessage")
    node = scan(plan(query, values))
    assert node["Index Name"] == "outbox_unpublished"
    assert node["Actual Rows"] + node.get("Rows Removed by Filter", 0) == 100
    assert node["Shared Hit Blocks"] + node["Shared Read Blocks"] < 120


def test_published_rows_are_not_in_the_index() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT indexdef FROM pg_indexes WHERE indexname = 'outbox_unpublished'")
        (definition,) = cursor.fetchone() or ("",)
    assert definition.endswith("(id) WHERE (published_at IS NULL)")
