"""The housekeeper as a process: it is stopped in the middle of a table, and the next one goes on."""

from __future__ import annotations

import pytest
from django.db import connection

from devstack import wait_until
from kafka_bridge.models import DeadLetter, OutboxMessage, ProcessHeartbeat
from tests.support.kafka import produce
from tests.support.service import Service

pytestmark = pytest.mark.django_db(transaction=True)

ROWS = 60_000
MOMENT_SECONDS = 60.0


def insert_published_rows(count: int) -> None:
    """Outbox rows that were published a year ago."""
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO kafka_bridge_outboxmessage (event_id, event_type, topic, shard, created_at, published_at)"
            " SELECT gen_random_uuid(), 'coupon.issue.succeeded.v1', 't', 0, now() - interval '1 year', now()"
            " FROM generate_series(1, %s)",
            [count],
        )


def when_fewer_rows_than(count: int) -> None:
    wait_until(lambda: OutboxMessage.objects.count() < count, MOMENT_SECONDS, f"{count} rows are left", 0.01)


def test_a_housekeeper_stopped_in_mid_table_ends_cleanly_and_the_next_goes_on(service: Service) -> None:
    insert_published_rows(ROWS)
    housekeeper = service.start("housekeeper")
    when_fewer_rows_than(ROWS - 2000)
    assert ProcessHeartbeat.objects.filter(role="housekeeper").exists()
    assert housekeeper.stop(10) == 0
    left = OutboxMessage.objects.count()
    # Whole batches are gone, and the table is not empty: the stop came in its middle.
    assert left > 0
    assert left % 1000 == 0
    assert not ProcessHeartbeat.objects.filter(role="housekeeper").exists()
    housekeeper.start()
    when_fewer_rows_than(left)
    assert housekeeper.stop(10) == 0
    assert "Traceback" not in housekeeper.log_tail(1000)


def test_the_effects_find_a_message_of_others_on_a_dead_letter_topic(service: Service) -> None:
    effects = service.start("effects")
    produce("order-completed.DLT", [b"not ours"])
    wait_until(DeadLetter.objects.exists, MOMENT_SECONDS, "the message of others has no row")
    row = DeadLetter.objects.get()
    assert (row.consumer_group, row.topic, row.closed_at) == ("foreign", "order-completed.DLT", None)
    assert effects.stop(30) == 0
