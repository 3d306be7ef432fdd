"""The key figures of messaging and their targets."""

from __future__ import annotations

import timeit

import pytest
from django.db import connection

from kafka_bridge.operating.kpis import Kpi, kpis
from tests.operating.alarms import add_sample

pytestmark = pytest.mark.django_db(transaction=True)


def by_name(lag_ms: float | None = None) -> dict[str, Kpi]:
    return {kpi.name: kpi for kpi in kpis(lag_ms)}


def test_without_a_message_there_is_a_target_and_no_value() -> None:
    assert kpis(None) == [
        Kpi("lag", None, 1000.0, "ms", None),
        Kpi("success", None, 99.9, "%", None),
        Kpi("processing", None, 100.0, "ms", None),
        Kpi("dead letters", None, 0.1, "%", None),
    ]


def test_the_figures_are_of_five_minutes_and_of_a_day() -> None:
    add_sample("issue", handled=600, message_seconds=30)
    add_sample("issue", seconds_ago=200, handled=300, message_seconds=6, errors=1)
    add_sample("results", handled=1100, dead_letters=1, message_seconds=900)
    add_sample("issue", seconds_ago=310, handled=7000, dead_letters=8, message_seconds=7000)
    add_sample("issue", seconds_ago=90_000, handled=1000, dead_letters=1000)
    add_sample("relay", handled=9, dead_letters=9)
    figures = by_name(999.5)
    assert figures["lag"] == Kpi("lag", 999.5, 1000.0, "ms", True)
    assert figures["success"].value == pytest.approx(99.9)
    assert figures["processing"].value == pytest.approx(40.0)
    assert figures["dead letters"].value == pytest.approx(0.1)
    assert [figure.ok for figure in figures.values()] == [True] * 4


def test_a_figure_past_its_target_is_not_ok() -> None:
    add_sample("issue", handled=1000, message_seconds=100.1, dead_letters=2)
    assert [kpi.ok for kpi in kpis(1000.1)] == [False] * 4


def test_the_figures_of_a_busy_day_are_read_quickly() -> None:
    with connection.cursor() as cursor:
        # Twenty processes for an hour, and a sum of each source for every minute of the day before.
        cursor.execute(
            """
            INSERT INTO kafka_bridge_sample (process_id, source, taken_at, seconds, counts)
            SELECT CASE WHEN minutes = 1 THEN gen_random_uuid() END, source, statement_timestamp() - age, 5,
                   '{"handled": 1000, "dead_letters": 0, "passed_over": 0, "errors": 0, "message_seconds": 1.5}'
            FROM unnest(array['issue', 'results', 'notification', 'data-platform', 'ranking', 'monitoring']) source,
                 (SELECT 1, n * interval '1.5 seconds' FROM generate_series(1, 2400) n
                  UNION ALL SELECT 60, interval '1 hour' + n * interval '1 minute' FROM generate_series(1, 1380) n)
                 AS sample (minutes, age)
            """
        )
        cursor.execute("ANALYZE kafka_bridge_sample")
    assert by_name()["dead letters"].value == 0.0
    # The quickest of three: other processes are at work on this machine.
    assert min(timeit.repeat(lambda: kpis(None), number=1, repeat=3)) < 0.3
