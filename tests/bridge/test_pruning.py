"""Published rows go when their time is over; what somebody waits for stays."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from django.db import connection

from common.processes.lifecycle import StopFlag
from coupons.consumer_groups import ISSUE
from coupons.issuance.accept import request_accept
from coupons.issuance.idempotency import find_existing_requests
from coupons.messages import ISSUE_REQUESTED
from coupons.models import Coupon
from coupons.selectors import request_status
from kafka_bridge.consuming.batch import BatchHandler
from kafka_bridge.models import OutboxMessage
from kafka_bridge.outbox.pruning import prune
from kafka_bridge.outbox.writing import stored_payload
from kafka_bridge.registry import ReceivedMessage
from tests.support.messages import message, request_body
from tests.support.outbox import publish_orders

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
    publish_orders([1, 2, 3])
    published(hours_ago=2)
    publish_orders([4])
    published(hours_ago=0.5)
    publish_orders([5])
    assert prune(RETENTION, StopFlag(), batch_size=2) == 3
    assert sorted(bytes(row.key or b"") for row in OutboxMessage.objects.all()) == [b"4", b"5"]


def test_rows_that_wait_for_the_relay_do_not_hide_what_is_behind_them() -> None:
    publish_orders([1, 2, 3, 4])
    with connection.cursor() as cursor:
        cursor.execute("UPDATE kafka_bridge_outboxmessage SET created_at = now() - interval '3 hours'")
    OutboxMessage.objects.filter(key=b"4").update(published_at="2020-01-01T00:00:00Z")
    assert prune(RETENTION, StopFlag(), batch_size=2) == 1
    assert OutboxMessage.objects.count() == 3


def test_a_request_without_a_result_is_never_deleted(make_coupon: Callable[..., Coupon]) -> None:
    coupon = make_coupon()
    accepted = request_accept(id_or_type=coupon.id, user_id=1, caller_id=1)
    published(hours_ago=1000)
    assert prune(RETENTION, StopFlag()) == 0

    row = OutboxMessage.objects.get()
    BatchHandler(ISSUE).handle([message(bytes(row.payload or b""))], StopFlag())
    published(hours_ago=1000)
    assert prune(RETENTION, StopFlag()) == 2
    status = request_status(accepted.request_id)
    assert status is not None
    assert status.status == "SUCCESS"


def poison(coupon: Coupon, user_id: int) -> ReceivedMessage:
    """A message that names a request and cannot be decided: it becomes a dead letter with a copy on the DLT."""
    body = request_body(coupon, user_id, userId="not a number")
    headers = (("ce_id", body["requestId"].encode()), ("ce_type", ISSUE_REQUESTED.encode()))
    return message(body, headers=headers)


def test_the_copy_of_a_dead_request_is_deleted_without_a_warning(
    make_coupon: Callable[..., Coupon], caplog: pytest.LogCaptureFixture
) -> None:
    BatchHandler(ISSUE).handle([poison(make_coupon(), 1)], StopFlag())
    copies = OutboxMessage.objects.filter(event_type=ISSUE_REQUESTED).exclude(headers=None)
    assert copies.count() == 1
    published(hours_ago=2)
    prune(RETENTION, StopFlag())
    assert not OutboxMessage.objects.exists()
    assert "kept" not in caplog.text


def test_the_copy_of_a_dead_request_is_no_request(make_coupon: Callable[..., Coupon]) -> None:
    BatchHandler(ISSUE).handle([poison(make_coupon(), 1)], StopFlag())
    (copy,) = OutboxMessage.objects.exclude(headers=None)
    assert request_status(copy.event_id) is None
    assert find_existing_requests([copy.event_id]) == {}
    assert stored_payload(ISSUE_REQUESTED, copy.event_id) is None
