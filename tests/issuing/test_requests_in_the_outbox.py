"""A request is its outbox row: pruning keeps it while it is undecided, and a refusal by the broker ends it."""

from collections.abc import Callable
from datetime import timedelta
from random import Random
from uuid import UUID

import pytest
from django.db import connection, transaction

from common.processes.lifecycle import StopFlag
from coupons.consumer_groups import ISSUE
from coupons.issuance.accept import request_accept
from coupons.issuance.idempotency import find_existing_requests
from coupons.messages import ISSUE_REQUESTED
from coupons.models import Coupon, IssueRequest
from coupons.selectors import request_status
from kafka_bridge.consuming.batch import BatchHandler
from kafka_bridge.models import OutboxMessage
from kafka_bridge.outbox.pruning import prune
from kafka_bridge.outbox.writing import Message, publish, stored_payloads
from kafka_bridge.registry import ReceivedMessage
from tests.support.kafka import header, read_topic, relay_everything, set_topic_config
from tests.support.messages import message, request_body

pytestmark = pytest.mark.django_db(transaction=True)

MakeCoupon = Callable[..., Coupon]
RETENTION = timedelta(hours=1)


def published(hours_ago: float) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE kafka_bridge_outboxmessage"
            " SET published_at = now() - %s * interval '1 hour', created_at = now() - %s * interval '1 hour'"
            " WHERE published_at IS NULL",
            [hours_ago, hours_ago],
        )


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
    assert stored_payloads(ISSUE_REQUESTED, [copy.event_id]) == {}


@pytest.mark.usefixtures("topics")
def test_a_request_that_the_broker_refuses_ends_with_error_and_its_dead_letter_is_told(make_coupon: MakeCoupon) -> None:
    set_topic_config("coupon-issue-request", {"max.message.bytes": "2000"})
    # Random, or the producer's compression would bring it under the limit.
    body = request_body(make_coupon(), 7) | {"note": Random(1).randbytes(10_000).hex()}
    request_id = UUID(body["requestId"])
    with transaction.atomic():
        publish([Message(ISSUE_REQUESTED, body, event_id=request_id)])
    relay_everything()

    row = IssueRequest.objects.get()
    assert (row.request_id, row.status, row.reason, row.user_id) == (request_id, "FAILED", "ERROR", 7)
    (told,) = read_topic("coupon-issue-request.DLT", 1)
    assert (header(told, "x-consumer-group"), header(told, "ce_id")) == ("relay", str(request_id))
