"""An event that the broker refuses for good becomes a dead letter and its key goes on; a damaged row is published."""

import json
from collections.abc import Iterator
from dataclasses import replace
from random import Random
from typing import Any
from uuid import UUID, uuid4

import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from django.db import transaction

from kafka_bridge.models import DeadLetter, OutboxMessage
from kafka_bridge.outbox.writing import Message, publish
from kafka_bridge.registry import prefixed
from tests.stub_app.events import publish_keys, request_body
from tests.stub_app.models import Booking
from tests.stub_app.routes import BOOKING_REQUESTED, REQUESTS
from tests.stub_app.routes import NUMBER_DRAWN as EVENT
from tests.stub_app.routes import NUMBERS as TOPIC
from tests.support.kafka import header, read_topic, relay_everything
from tests.support.published import unpublished_rows

pytestmark = pytest.mark.django_db(transaction=True)

SMALL = "takes-small-messages"


@pytest.fixture
def small_topic(topics: str, settings: Any) -> Iterator[None]:
    """A topic whose limit is far below what the outbox takes, and the routes of two events to it."""
    settings.KAFKA_ROUTES = settings.KAFKA_ROUTES | {
        event_type: replace(settings.KAFKA_ROUTES[event_type], topic=SMALL) for event_type in (EVENT, BOOKING_REQUESTED)
    }
    admin = AdminClient({"bootstrap.servers": settings.KAFKA_BOOTSTRAP_SERVERS})
    limit = {"max.message.bytes": "2000"}
    admin.create_topics([NewTopic(prefixed(SMALL), 1, 1, config=limit)])[prefixed(SMALL)].result()
    yield
    admin.delete_topics([prefixed(SMALL)])[prefixed(SMALL)].result()


# Random, or the producer's compression would bring it under the limit.
NOISE = Random(1).randbytes(10_000).hex()


@pytest.mark.usefixtures("small_topic")
def test_one_event_past_the_topics_limit_does_not_hold_up_the_others() -> None:
    with transaction.atomic():
        publish(Message(EVENT, {"key": 1, "number": n, "text": NOISE if n == 1 else ""}) for n in range(4))
    relay_everything()

    assert not unpublished_rows().exists()
    letter = DeadLetter.objects.get()
    assert (letter.consumer_group, json.loads(bytes(letter.payload or b""))["number"]) == ("relay", 1)
    sent = [json.loads(message.value() or b"")["number"] for message in read_topic(SMALL, 3)]
    assert list(dict.fromkeys(sent)) == [0, 2, 3]


@pytest.mark.usefixtures("small_topic")
def test_a_request_that_is_refused_ends_with_error_and_its_dead_letter_is_told() -> None:
    body = request_body(7) | {"note": NOISE}
    request_id = UUID(body["requestId"])
    with transaction.atomic():
        publish([Message(BOOKING_REQUESTED, body, event_id=request_id)])
    relay_everything()

    row = Booking.objects.get()
    assert (row.request_id, row.status, row.reason, row.user_id) == (request_id, "FAILED", "ERROR", 7)
    (told,) = read_topic(f"{REQUESTS}.DLT", 1)
    assert (header(told, "x-consumer-group"), header(told, "ce_id")) == ("relay", str(request_id))


@pytest.mark.parametrize("headers", [b"\xff{", b"", b"[1]", b'[["name", "no base64!"]]'])
def test_a_row_with_headers_that_cannot_be_read_is_published_with_what_it_has(topics: str, headers: bytes) -> None:
    publish_keys([1])
    OutboxMessage.objects.create(
        event_id=uuid4(), event_type=EVENT, topic=TOPIC, shard=0, key=b"1", payload=b"damaged", headers=headers
    )
    publish_keys([1])
    relay_everything()

    assert not unpublished_rows().exists()
    messages = read_topic(TOPIC, 3)
    (damaged,) = [message for message in messages if message.value() == b"damaged"]
    assert damaged.headers() == [("x-unreadable-headers", headers)]
