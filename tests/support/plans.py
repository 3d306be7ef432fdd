"""How PostgreSQL runs the queries of some code."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

from django.db import connection
from django.test.utils import CaptureQueriesContext


class TableRead(NamedTuple):
    """A node of a plan that reads a table: the rows read, those that it filtered out included."""

    table: str
    node: str
    rows: float
    statement: str


def queries_of(work: Callable[[], object]) -> list[str]:
    """Run ``work``; return its reads as they were sent."""
    with CaptureQueriesContext(connection) as queries:
        work()
    return [text for query in queries if (text := query["sql"].strip()).startswith(("SELECT", "WITH"))]


def reads_of(statements: Collection[str], tables: Collection[str]) -> list[TableRead]:
    """Run the statements again; return how they read ``tables``."""
    return [
        TableRead(
            node["Relation Name"],
            node["Node Type"],
            (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"],
            statement,
        )
        for statement in statements
        for node in _nodes(_plan(statement))
        if node.get("Relation Name") in tables
    ]


def _plan(statement: str) -> dict[str, Any]:
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}".replace("%", "%%"), [])
        (answer,) = cursor.fetchone() or ([],)
    plan: dict[str, Any] = (json.loads(answer) if isinstance(answer, str) else answer)[0]["Plan"]
    return plan


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from _nodes(child)
