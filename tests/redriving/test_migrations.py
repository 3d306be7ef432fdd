"""The migrations of redrives can be broken off at any point and run again, on tables that are in use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.db import OperationalError, ProgrammingError, connection
from django.db.migrations.executor import MigrationExecutor

from kafka_bridge.models import Redrive
from tests.effects.cast import many_completed
from tests.redriving.letters import create, dead_letters
from tests.support.threads import lock

pytestmark = pytest.mark.django_db(transaction=True)

BRIDGE = {
    "dead_letter_by_group_error",
    "dead_letter_by_group",
    "dead_letter_by_error",
    "dead_letter_by_topic",
    "dead_letter_by_outcome",
    "dead_letter_quarantined",
    "redrive_item_due",
    "redrive_not_started",
}
COUPONS = {"one_replay_per_request"}

_INDEXES = "SELECT indexrelid::regclass::text, indisvalid FROM pg_index WHERE indexrelid::regclass::text = ANY(%s)"
_COLUMNS = "SELECT count(*) FROM information_schema.columns WHERE table_name = %s AND column_name = ANY(%s)"


def migrate(app: str, name: str | None = None) -> None:
    executor = MigrationExecutor(connection)
    executor.migrate(executor.loader.graph.leaf_nodes() if name is None else [(app, name)])


def execute(statement: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement)


def indexes(names: set[str]) -> dict[str, bool]:
    """Whether each of the indexes that exist is valid."""
    with connection.cursor() as cursor:
        cursor.execute(_INDEXES, [list(names)])
        return dict(cursor.fetchall())


def columns(table: str, *names: str) -> int:
    with connection.cursor() as cursor:
        cursor.execute(_COLUMNS, [table, list(names)])
        (count,) = cursor.fetchone() or (0,)
        return int(count)


@pytest.fixture(autouse=True)
def _newest_afterwards(transactional_db: None) -> Iterator[None]:
    yield
    connection.close()
    migrate("kafka_bridge")


@pytest.mark.parametrize(
    ("app", "before", "table", "names"),
    [
        ("kafka_bridge", "0012_clearing_alerts", "kafka_bridge_redrive", BRIDGE),
        ("coupons", "0015_replayed_requests", "coupons_issuerequest", COUPONS),
    ],
)
def test_a_build_of_indexes_that_was_broken_off_is_repeated(app: str, before: str, table: str, names: set[str]) -> None:
    migrate(app, before)
    assert indexes(names) == {}
    execute("SET lock_timeout = '200ms'")
    with lock(f"LOCK TABLE {table} IN ROW EXCLUSIVE MODE"), pytest.raises(OperationalError, match="lock timeout"):
        migrate(app)
    broken = indexes(names)
    assert list(broken.values()).count(False) == 1
    assert len(broken) == len(names)
    migrate(app)
    assert indexes(names) == dict.fromkeys(names, True)


def test_fields_are_added_all_or_none() -> None:
    names = ("traceback", "replays", "outcome", "leased_until")
    migrate("kafka_bridge", "0008_group_pauses")
    execute("ALTER TABLE kafka_bridge_deadletter ADD COLUMN leased_until timestamptz")
    with pytest.raises(ProgrammingError, match="already exists"):
        migrate("kafka_bridge")
    assert columns("kafka_bridge_deadletter", *names) == 1
    execute("ALTER TABLE kafka_bridge_deadletter DROP COLUMN leased_until")
    migrate("kafka_bridge")
    assert columns("kafka_bridge_deadletter", *names) == len(names)
    assert indexes(BRIDGE) == dict.fromkeys(BRIDGE, True)


def test_a_rate_that_no_redrive_can_have_comes_into_range() -> None:
    dead_letters("monitoring", many_completed([1]))
    redrives = [create(), create(), create()]
    migrate("kafka_bridge", "0013_indexes_for_redrives")
    for redrive, rate in zip(redrives, (0, 50, 2_000_000), strict=True):
        Redrive.objects.filter(pk=redrive.pk).update(rate=rate)
    migrate("kafka_bridge")
    assert list(Redrive.objects.order_by("id").values_list("rate", flat=True)) == [1, 50, 1000]


def test_a_database_with_the_indexes_comes_through() -> None:
    """Until they had a migration of their own, 0009 and 0015 built them."""
    migrate("kafka_bridge", "0012_clearing_alerts")
    migrate("coupons", "0015_replayed_requests")
    execute("CREATE INDEX dead_letter_by_topic ON kafka_bridge_deadletter (topic, id)")
    execute("CREATE UNIQUE INDEX one_replay_per_request ON coupons_issuerequest (replay_of)")
    migrate("kafka_bridge")
    assert indexes(BRIDGE | COUPONS) == dict.fromkeys(BRIDGE | COUPONS, True)
