"""A migration that runs outside a transaction may be interrupted at any step: it is run again from its beginning."""

from __future__ import annotations

import pytest
from django.apps import apps
from django.db import connection
from django.db.migrations.loader import MigrationLoader

pytestmark = pytest.mark.django_db(transaction=True)

OURS = ("coupons", "kafka_bridge", "orders")


def migrations_outside_a_transaction() -> list[tuple[str, str]]:
    loader = MigrationLoader(None)
    return sorted(key for key, migration in loader.disk_migrations.items() if key[0] in OURS and not migration.atomic)


@pytest.mark.parametrize(("app", "name"), migrations_outside_a_transaction())
def test_a_migration_outside_a_transaction_can_be_repeated(app: str, name: str) -> None:
    """Here all of its steps are done, as if the process had ended before it recorded the migration."""
    loader = MigrationLoader(connection)
    before = loader.project_state((app, name), at_end=False)
    with connection.schema_editor(atomic=False) as editor:
        loader.disk_migrations[app, name].apply(before, editor)
    assert invalid_indexes() == []


def invalid_indexes() -> list[str]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid")
        return [name for (name,) in cursor.fetchall()]


def test_there_is_such_a_migration() -> None:
    assert set(OURS) <= {config.label for config in apps.get_app_configs()}
    assert ("kafka_bridge", "0006_indexes_for_housekeeping") in migrations_outside_a_transaction()
