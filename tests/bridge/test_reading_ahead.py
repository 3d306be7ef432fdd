"""A full batch is followed by a read ahead while its rows are on their way; what happens in between still counts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from common.processes.lifecycle import StopFlag
from kafka_bridge.models import HeldMessage, OutboxHold
from kafka_bridge.outbox.writing import Message, publish
from kafka_bridge.relaying.relay import Relay
from tests.stub_app.events import publish_numbers
from tests.stub_app.routes import NUMBER_DRAWN, NUMBERS
from tests.support.kafka import read_to_end
from tests.support.threads import OpenTransaction

from .scenes import numbers, settle, take_over

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("topics")]


@pytest.fixture
def relay(monkeypatch: pytest.MonkeyPatch, observing_always: None) -> Iterator[Relay]:
    """A relay with batches of two rows that looks at holds and at the settled mark in every pass."""
    monkeypatch.setattr("kafka_bridge.relaying.relay._HELD_SECONDS", 0.0)
    some_relay = Relay(batch_size=2)
    yield some_relay
    some_relay.close()


def test_a_row_committed_late_beneath_what_was_read_ahead_is_sent(relay: Relay) -> None:
    publish_numbers(range(2))
    with OpenTransaction(lambda: publish([Message(NUMBER_DRAWN, {"key": 1, "number": 99})])) as late:
        publish_numbers(range(2, 5))
        assert relay.relay_batch(StopFlag()) == 2
        late.commit()
    settle(relay)
    # Two were read ahead before the late row was there.
    assert numbers(read_to_end(NUMBERS)) == [0, 1, 2, 3, 99, 4]


def test_rows_read_ahead_are_held_with_their_topic(relay: Relay) -> None:
    publish_numbers(range(5))
    assert relay.relay_batch(StopFlag()) == 2
    hold = OutboxHold.objects.create(topic=NUMBERS, key=None, reason="a consumer is broken")
    settle(relay)
    assert numbers(read_to_end(NUMBERS)) == [0, 1]
    assert HeldMessage.objects.count() == 3
    hold.delete()
    settle(relay)
    assert numbers(read_to_end(NUMBERS)) == [0, 1, 2, 3, 4]


@pytest.mark.usefixtures("renewing_always")
def test_rows_read_ahead_are_dropped_by_a_relay_that_lost_its_shards_for_a_while(relay: Relay) -> None:
    publish_numbers(range(5))
    assert relay.relay_batch(StopFlag()) == 2
    take_over()
    heir = Relay()
    settle(heir)
    heir.close()
    settle(relay)
    assert numbers(read_to_end(NUMBERS)) == [0, 1, 2, 3, 4]
