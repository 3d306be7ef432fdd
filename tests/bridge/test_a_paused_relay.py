"""A relay that an operator has paused publishes nothing, keeps its leases and goes on in order."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pytest_django import Settings

from common.postgres.clock import database_time
from common.processes.lifecycle import StopFlag
from devstack.ports import free_port
from devstack.processes import wait_until
from kafka_bridge.client import ensure_topics
from kafka_bridge.models import SHARDS, Alert, HeldMessage, RelayLease
from kafka_bridge.relaying.relay import Relay
from tests.stub_app.events import publish_numbers
from tests.stub_app.routes import NUMBERS
from tests.support.forwarder import Forwarder
from tests.support.kafka import lose_topics, produce, read_to_end, read_topic, relay_everything, set_topic_config
from tests.support.published import unpublished_rows
from tests.support.threads import in_another_session

from .scenes import numbers

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("topics")]


class Switch:
    """What an operator wants."""

    def __init__(self) -> None:
        self.is_paused = False

    def __call__(self) -> bool:
        return self.is_paused


@pytest.fixture
def switch() -> Switch:
    return Switch()


@pytest.fixture
def relay(switch: Switch, monkeypatch: pytest.MonkeyPatch) -> Iterator[Relay]:
    """A relay in this thread that looks at what is held in every pass."""
    monkeypatch.setattr("kafka_bridge.relaying.relay._HELD_SECONDS", 0.0)
    some_relay = Relay(is_paused=switch)
    yield some_relay
    some_relay.close()


def passes(relay: Relay, count: int = 3) -> int:
    return sum(relay.relay_batch(StopFlag()) for _ in range(count))


def test_a_paused_relay_publishes_nothing_keeps_its_leases_and_catches_up_in_order(
    relay: Relay, switch: Switch
) -> None:
    publish_numbers(range(3))
    passes(relay)
    switch.is_paused = True
    publish_numbers(range(3, 6))
    assert passes(relay, 5) == 0
    assert unpublished_rows().count() == 3
    held = RelayLease.objects.filter(expires_at__gt=database_time()).values_list("owner", flat=True)
    assert (len(held), len(set(held))) == (SHARDS, 1)
    switch.is_paused = False
    passes(relay)
    assert numbers(read_to_end(NUMBERS)) == list(range(6))


def test_rows_that_were_read_ahead_wait_too(switch: Switch) -> None:
    publish_numbers(range(5))
    relay = Relay(batch_size=2, is_paused=switch)
    assert relay.relay_batch(StopFlag()) == 2
    switch.is_paused = True
    assert passes(relay) == 0
    assert numbers(read_to_end(NUMBERS)) == [0, 1]
    switch.is_paused = False
    assert passes(relay) == 3
    assert numbers(read_to_end(NUMBERS)) == [0, 1, 2, 3, 4]
    relay.close()


def test_held_rows_wait_too_when_their_topic_accepts_messages_again(
    relay: Relay, switch: Switch, settings: Settings
) -> None:
    lose_topics(NUMBERS)
    publish_numbers(range(3))
    passes(relay)
    assert HeldMessage.objects.count() == 3
    switch.is_paused = True
    ensure_topics(settings.KAFKA_ROUTES)
    passes(relay, 5)
    assert (HeldMessage.objects.count(), read_to_end(NUMBERS)) == (3, [])
    switch.is_paused = False
    relay.close()
    relay_everything()
    assert numbers(read_to_end(NUMBERS)) == [0, 1, 2]


def test_rows_in_flight_are_taken_back_from_the_producer(relay: Relay, switch: Switch) -> None:
    """A topic without enough replicas: the producer has its rows, and would send them when it has."""
    set_topic_config(NUMBERS, {"min.insync.replicas": "2"})
    publish_numbers(range(3))
    wait_until(lambda: passes(relay, 1) >= 0 and HeldMessage.objects.count() == 3, 30, "the rows are not held")
    switch.is_paused = True
    passes(relay, 1)
    set_topic_config(NUMBERS, {"min.insync.replicas": "1"})
    publish_numbers(range(3, 4))
    passes(relay, 20)
    assert read_to_end(NUMBERS) == []
    switch.is_paused = False
    wait_until(lambda: passes(relay, 1) >= 0 and unpublished_rows().count() == 0, 30, "it does not go on")
    assert numbers(read_topic(NUMBERS, 4)) == [0, 1, 2, 3]


def test_a_relay_that_ends_when_idle_ends_while_it_is_paused(switch: Switch, caplog: pytest.LogCaptureFixture) -> None:
    publish_numbers(range(3))
    switch.is_paused = True
    in_another_session(lambda: Relay(is_paused=switch).run(StopFlag(), until_idle=True)).result(30)
    assert "ends without publishing, an operator has paused it" in caplog.text
    assert unpublished_rows().count() == 3


def test_a_relay_that_is_paused_while_no_broker_answers_sends_nothing_when_one_does(
    switch: Switch, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    address = settings.KAFKA_BOOTSTRAP_SERVERS
    settings.KAFKA_PRODUCER_CONFIG = {"reconnect.backoff.max.ms": 100}
    publish_numbers(range(3))
    stop = StopFlag()
    with Forwarder(free_port()) as forwarder:
        settings.KAFKA_BOOTSTRAP_SERVERS = f"127.0.0.1:{forwarder.port}"
        running = in_another_session(lambda: Relay(is_paused=switch).run(stop))
        try:
            wait_until(Alert.objects.exists, 30, "the relay does not wait for a broker")
            switch.is_paused = True
            wait_until(lambda: "paused while no broker answered" in caplog.text, 30, "it waits on")
            forwarder.point_at(int(address.rpartition(":")[2]))
            # By the time that this message is there, a producer that still had the rows would have sent them.
            produce(NUMBERS, [b'{"number": -1}'])
            assert numbers(read_to_end(NUMBERS)) == [-1]
            assert unpublished_rows().count() == 3
            switch.is_paused = False
            wait_until(lambda: unpublished_rows().count() == 0, 60, "it does not go on")
        finally:
            forwarder.point_at(int(address.rpartition(":")[2]))
            settings.KAFKA_BOOTSTRAP_SERVERS = address
            stop.request()
            running.result(60)
    assert sorted(numbers(read_to_end(NUMBERS))) == [-1, 0, 1, 2]
