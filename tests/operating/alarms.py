"""What tests of alarms share: an evaluator of one judge, samples, and what is open."""

from __future__ import annotations

from collections.abc import Sequence

from django.db import connection
from psycopg2.extras import Json

from kafka_bridge.models import Alert
from kafka_bridge.operating.alerts import AlertRule
from kafka_bridge.operating.evaluation import AlertEvaluator, Judge


def evaluator_of(rule: AlertRule, judge: Judge) -> AlertEvaluator:
    """An evaluator that judges nothing else."""
    return AlertEvaluator(judges=[([rule], judge)])


def open_now() -> list[tuple[str, str]]:
    """Rule and summary of the open alerts."""
    return list(Alert.objects.filter(ended_at=None).order_by("rule").values_list("rule", "summary"))


def open_rules() -> list[str]:
    return [rule for rule, _ in open_now()]


def add_sample(source: str, *, seconds_ago: float = 1.0, **counts: float) -> None:
    """Insert what a process counted for ``source`` in five seconds."""
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO kafka_bridge_sample (process_id, source, taken_at, seconds, counts)"
            " SELECT gen_random_uuid(), %s, statement_timestamp() - %s * interval '1 second', 5, %s",
            [source, seconds_ago, Json(counts)],
        )


def move_into_the_past(table: str, columns: Sequence[str], seconds: float) -> None:
    """Let the rows of a table be older."""
    changes = ", ".join(f"{column} = {column} - {seconds} * interval '1 second'" for column in columns)
    with connection.cursor() as cursor:
        cursor.execute(f"UPDATE {table} SET {changes}")
