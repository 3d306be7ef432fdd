"""An event that the broker refuses for good becomes a dead letter, and its key goes on."""

import json
from collections.abc import Iterator
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from django.db import transaction

from kafka_bridge.models import DeadLetter, OutboxMessage
from kafka_bridge.outbox import Event, publish
from kafka_bridge.registry import prefixed
from tests.support.kafka import read_topic, relay_everything
from tests.support.outbox import EVENT

pytestmark = pytest.mark.django_db(transaction=True)

SMALL = "takes-small-messages"


@pytest.fixture
def small_topic(topics: str, settings: Any) -> Iterator[None]:
    """A topic whose limit is far below what the outbox takes, and the event's route to it."""
    settings.KAFKA_ROUTES = settings.KAFKA_ROUTES | {EVENT: replace(settings.KAFKA_ROUTES[EVENT], topic=SMALL)}
    admin = AdminClient({"bootstrap.servers": settings.KAFKA_BOOTSTRAP_SERVERS})
    limit = {"max.message.bytes": "2000"}
    admin.create_topics([NewTopic(prefixed(SMALL), 1, 1, config=limit)])[prefixed(SMALL)].result()
    yield
    admin.delete_topics([prefixed(SMALL)])[prefixed(SMALL)].result()


@pytest.mark.usefixtures("small_topic")
def test_one_event_past_the_topics_limit_does_not_hold_up_the_others() -> None:
    # Random, or the producer's compression would bring it under the limit.
    noise = Random(1).randbytes(10_000).hex()
    with transaction.atomic():
        publish(Event(EVENT, {"orderId": 1, "number": n, "text": noise if n == 1 else ""}) for n in range(4))
    relay_everything()

    assert not OutboxMessage.objects.filter(published_at=None).exists()
    letter = DeadLetter.objects.get()
    assert (letter.consumer_group, json.loads(bytes(letter.payload or b""))["number"]) == ("relay", 1)
    sent = [json.loads(message.value() or b"")["number"] for message in read_topic(SMALL, 3)]
    assert list(dict.fromkeys(sent)) == [0, 2, 3]
