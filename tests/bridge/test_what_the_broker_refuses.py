"""An event that the broker refuses for good becomes a dead letter, and its key goes on."""

import json
from random import Random

import pytest
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType
from django.conf import settings
from django.db import transaction

from kafka_bridge.models import DeadLetter, OutboxMessage
from kafka_bridge.outbox import Event, publish
from kafka_bridge.registry import prefixed
from tests.support.kafka import read_topic, relay_everything
from tests.support.outbox import EVENT, TOPIC

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("topics")]


@pytest.fixture
def small_topic() -> None:
    entry = ConfigEntry("max.message.bytes", "2000", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, prefixed(TOPIC), incremental_configs=[entry])
    admin = AdminClient({"bootstrap.servers": settings.KAFKA_BOOTSTRAP_SERVERS})
    for future in admin.incremental_alter_configs([resource]).values():
        future.result()


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
    sent = [json.loads(message.value() or b"")["number"] for message in read_topic(TOPIC, 3)]
    assert list(dict.fromkeys(sent)) == [0, 2, 3]
