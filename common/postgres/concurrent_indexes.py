"""Indexes that are built while the table is written, in migrations that can be repeated after any break."""

from __future__ import annotations

from typing import Any

from django.contrib.postgres.operations import AddIndexConcurrently
from django.db.backends.base.schema import BaseDatabaseSchemaEditor


class RebuildIndexConcurrently(AddIndexConcurrently):
    """Add an index like AddIndexConcurrently, dropping an index of its name first; for ``atomic = False``.

    A build that was broken off leaves an invalid index under the name, and a migration that ends after some of its
    operations begins again with the first.
    """

    def database_forwards(
        self, app_label: str, schema_editor: BaseDatabaseSchemaEditor, from_state: Any, to_state: Any
    ) -> None:
        """Drop and build the index."""
        if self.allow_migrate_model(
            schema_editor.connection.alias, to_state.apps.get_model(app_label, self.model_name)
        ):
            name = schema_editor.quote_name(self.index.name)
            schema_editor.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
        super().database_forwards(app_label, schema_editor, from_state, to_state)
