"""Tables and Redis for all tests of a module: the processes run on, so nothing is emptied between its tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.db import connection
from django.test import TransactionTestCase
from pytest_django import DjangoDbBlocker

from tests.seeds.document import redis_flush
from tests.support.tables import empty_tables


@pytest.fixture(scope="module")
def stores(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> Iterator[None]:
    """Empty tables and an empty Redis, also afterwards."""
    with django_db_blocker.unblock(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransactionTestCase, "_fixture_teardown", lambda case: None)
        empty_tables()
        redis_flush()
        yield
        empty_tables()
        redis_flush()
        connection.close()
