"""Before relays of the version before start again, the rows that a position passed are marked as operations.md says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from django.db import connection

from common.processes.lifecycle import StopFlag
from kafka_bridge.models import HeldMessage, OutboxHold, OutboxMessage
from kafka_bridge.relaying.relay import Relay
from tests.support.kafka import relay_everything
from tests.support.outbox import TOPIC, publish_numbers

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("topics")]

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"


def way_back() -> str:
    _, _, after = OPERATIONS.read_text().partition("To go back, stop the relays")
    found = re.search(r"```sql\n(.+?)```", after, re.DOTALL)
    assert found is not None
    return found.group(1)


def test_published_rows_are_marked_and_those_that_wait_or_are_held_are_not() -> None:
    publish_numbers(range(3))
    relay_everything()
    published = set(OutboxMessage.objects.values_list("id", flat=True))
    OutboxHold.objects.create(topic=TOPIC, key=None, reason="for the test")
    publish_numbers(range(3, 5))
    relay_until_held()
    OutboxHold.objects.all().delete()
    publish_numbers(range(5, 6))
    with connection.cursor() as cursor:
        cursor.execute(way_back())
    marked = OutboxMessage.objects.exclude(published_at=None)
    assert set(marked.values_list("id", flat=True)) == published
    # A relay of this version goes on from there as well.
    relay_everything()
    assert not HeldMessage.objects.exists()


def relay_until_held() -> None:
    some_relay = Relay()
    while HeldMessage.objects.count() < 2:
        some_relay.relay_batch(StopFlag())
    some_relay.close()
