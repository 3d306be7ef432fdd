"""A database that the old version filled, and that this version migrates and goes on with. Redis and Kafka are empty."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from django.contrib import admin
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.urls import reverse
from pytest_django import DjangoDbBlocker, Settings

from coupons.coupon_cache import coupon_cache
from coupons.models import Coupon, CouponControl, IssueRequest, UserCoupon
from couponsite.tokens import issue_access_token
from devstack import wait_until
from kafka_bridge.models import DeadLetter, OutboxMessage
from kafka_bridge.outbox.writing import anything_unpublished
from orders.models import Order
from tests.cluster.history import first_copies, read_history
from tests.support.kafka import header, read_to_end
from tests.support.service import Service, environment, run_command
from tests.upgrade.filled import ADMIN, PASSWORD, RESTOCK, SECRET_KEY, Answered, answered, load, own_database

pytestmark = pytest.mark.usefixtures("redis_flushed")

SECONDS = 60.0
# What ``migrate`` writes for itself, and flags: of those only their effect counts.
BOOKKEEPING = {"django_migrations", "django_content_type", "auth_permission", "auth_group_permissions"}
# The times that no calendar has in every zone are changed to the nearest that all have.
CHANGED_TIMES = {
    "1900-01-01T00:00:00Z": "1970-01-01T00:00:00Z",
    "9999-06-01T00:00:00Z": "9998-12-31T23:59:59.999999Z",
}

Tables = dict[str, list[str]]


@pytest.fixture
def filled(django_db_setup: None, django_db_blocker: DjangoDbBlocker, settings: Settings) -> Iterator[None]:
    """The database of the old version, not migrated."""
    settings.SECRET_KEY = SECRET_KEY
    # The rows that wait for the relay do so since the dump was made.
    settings.OUTBOX_MAX_AGE_SECONDS = 10**9
    with django_db_blocker.unblock(), own_database():
        load()
        yield


@pytest.fixture
def migrated(filled: None) -> None:
    """The database of the old version, migrated by this version."""
    migrate()


def migrate() -> None:
    result = run_command("migrate", env=environment())
    assert result.returncode == 0, result.stderr


def read_tables() -> Tables:
    """Every row of the tables that are there, as text of the columns that the old version has."""
    tables = {}
    with connection.cursor() as cursor:
        cursor.execute("SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace")
        for name in sorted(name for (name,) in cursor.fetchall()):
            cursor.execute(f"SELECT to_jsonb(row) FROM {name} AS row ORDER BY to_jsonb(row)::text")
            tables[name] = [row for (row,) in cursor.fetchall()]
    return tables


def test_every_row_of_the_old_version_is_still_there_unchanged(filled: None) -> None:
    before = {name: rows for name, rows in read_tables().items() if name not in BOOKKEEPING}
    migrate()
    after = read_tables()
    assert sum(map(bool, before.values())) >= 20
    changed = {name for name, rows in before.items() if not name.startswith("waffle_") and after[name] != rows}
    assert changed == {"coupons_coupon"}
    assert [text_of(row) for row in before["coupons_coupon"]] == [text_of(row) for row in after["coupons_coupon"]]


def text_of(row: Any) -> str:
    text = json.dumps(row)
    for old, new in CHANGED_TIMES.items():
        text = text.replace(old.replace("Z", "+00:00"), new.replace("Z", "+00:00"))
    return text
