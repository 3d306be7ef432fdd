"""The outbox row belongs to the transaction of the change, or to none."""

import re

import pytest
from django.db import transaction

from kafka_bridge.errors import PayloadTooLarge, PublishOutsideTransaction
from kafka_bridge.models import OutboxMessage
from kafka_bridge.outbox.writing import Message, insert_new_rows, outbox_row, publish
from tests.stub_app.events import publish_keys
from tests.stub_app.routes import NUMBER_DRAWN as EVENT

pytestmark = pytest.mark.django_db(transaction=True)


def test_publishing_outside_a_transaction_is_refused() -> None:
    with pytest.raises(PublishOutsideTransaction):
        publish([Message(EVENT, {"key": 1})])
    with pytest.raises(PublishOutsideTransaction):
        insert_new_rows([outbox_row(Message(EVENT, {"key": 1}))])


def test_a_change_that_is_rolled_back_is_told_to_nobody() -> None:
    with transaction.atomic():
        publish([Message(EVENT, {"key": 1})])
        transaction.set_rollback(True)
    assert OutboxMessage.objects.count() == 0


def test_events_keep_the_order_in_which_they_were_published() -> None:
    publish_keys([3, 1, 2])
    assert [bytes(row.key or b"") for row in OutboxMessage.objects.order_by("id")] == [b"3", b"1", b"2"]


def test_an_event_that_nobody_gave_a_trace_begins_one() -> None:
    """Not every change comes over HTTP: an order whose payment was in doubt is settled by a sweep."""
    given = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with transaction.atomic():
        publish([Message(EVENT, {"key": 1}), Message(EVENT, {"key": 2}, traceparent=given)])
    begun, kept = OutboxMessage.objects.order_by("id").values_list("traceparent", flat=True)
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-01", begun)
    assert kept == given


def test_an_event_past_what_topics_take_is_refused_before_it_is_stored() -> None:
    with pytest.raises(PayloadTooLarge, match="at most 900000"), transaction.atomic():
        publish([Message(EVENT, {"key": 1, "text": "x" * 900_000})])


def test_an_event_published_once_more_under_its_id_is_not_stored_twice() -> None:
    one, two = (outbox_row(Message(EVENT, {"key": n})) for n in (1, 2))
    with transaction.atomic():
        assert insert_new_rows([one, one]) == [True, False]
        assert insert_new_rows([two, one]) == [True, False]
    assert OutboxMessage.objects.count() == 2
