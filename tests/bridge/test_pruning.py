"""Published rows are deleted past their retention; rows of undecided requests stay."""

from datetime import timedelta
from uuid import UUID

import pytest
from django.db import connection, transaction

from common.processes.lifecycle import StopFlag
from kafka_bridge.consuming.batch import BatchHandler
from kafka_bridge.models import OutboxMessage
from kafka_bridge.outbox import pruning
from kafka_bridge.outbox.pruning import OutboxPruner, prune
from kafka_bridge.outbox.writing import Message, publish, stored_payloads
from tests.stub_app.consumer_groups import BOOKINGS
from tests.stub_app.events import answers, message, publish_keys, request_body
from tests.stub_app.routes import BOOKING_REQUESTED

pytestmark = pytest.mark.django_db(transaction=True)

RETENTION = timedelta(hours=1)


def published(hours_ago: float) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE kafka_bridge_outboxmessage"
            " SET published_at = now() - %s * interval '1 hour', created_at = now() - %s * interval '1 hour'"
            " WHERE published_at IS NULL",
            [hours_ago, hours_ago],
        )


def test_only_published_rows_past_retention_are_deleted() -> None:
    publish_keys([1, 2, 3])
    published(hours_ago=2)
    publish_keys([4])
    published(hours_ago=0.5)
    publish_keys([5])
    assert prune(RETENTION, StopFlag(), batch_size=2) == 3
    assert sorted(bytes(row.key or b"") for row in OutboxMessage.objects.all()) == [b"4", b"5"]


def test_rows_that_wait_for_the_relay_do_not_hide_what_is_behind_them() -> None:
    publish_keys([1, 2, 3, 4])
    with connection.cursor() as cursor:
        cursor.execute("UPDATE kafka_bridge_outboxmessage SET created_at = now() - interval '3 hours'")
    OutboxMessage.objects.filter(key=b"4").update(published_at="2020-01-01T00:00:00Z")
    assert prune(RETENTION, StopFlag(), batch_size=2) == 1
    assert OutboxMessage.objects.count() == 3


class OneBatch(StopFlag):
    """Set after the first batch, as a turn that is over."""

    def wait(self, seconds: float) -> bool:
        self.request()
        return True


def test_a_turn_goes_on_behind_the_rows_that_the_last_one_had_to_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "BATCH_SIZE", 2)
    publish_keys([1, 2, 3, 4])
    with connection.cursor() as cursor:
        cursor.execute("UPDATE kafka_bridge_outboxmessage SET created_at = now() - interval '3 hours'")
    OutboxMessage.objects.filter(key__in=[b"3", b"4"]).update(published_at="2020-01-01T00:00:00Z")
    pruner = OutboxPruner()
    assert [pruner.prune(RETENTION, OneBatch()) for _ in range(3)] == [0, 2, 0]
    # It has come to the end and begins anew.
    OutboxMessage.objects.update(published_at="2020-01-01T00:00:00Z")
    assert pruner.prune(RETENTION, OneBatch()) == 2


def test_a_row_that_its_apps_guard_keeps_is_never_deleted() -> None:
    body = request_body(1)
    with transaction.atomic():
        publish([Message(BOOKING_REQUESTED, body, event_id=UUID(body["requestId"]))])
    published(hours_ago=1000)
    assert prune(RETENTION, StopFlag()) == 0

    BatchHandler(BOOKINGS).handle([message(body)], StopFlag())
    published(hours_ago=1000)
    # The request and its result.
    assert prune(RETENTION, StopFlag()) == 2
    assert answers() == {1: "SUCCESS"}


def test_the_copy_of_a_dead_letter_is_deleted_without_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    body = request_body(1, userId="not a number")
    headers = (("ce_id", body["requestId"].encode()), ("ce_type", BOOKING_REQUESTED.encode()))
    BatchHandler(BOOKINGS).handle([message(body, headers=headers)], StopFlag())
    (copy,) = OutboxMessage.objects.filter(event_type=BOOKING_REQUESTED).exclude(headers=None)
    assert stored_payloads(BOOKING_REQUESTED, [copy.event_id]) == {}
    published(hours_ago=2)
    prune(RETENTION, StopFlag())
    assert not OutboxMessage.objects.exists()
    assert "kept" not in caplog.text
