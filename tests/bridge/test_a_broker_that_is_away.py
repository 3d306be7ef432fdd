"""A broker that does not answer for longer than the client's timeouts: nothing is lost, nothing overtakes."""

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from confluent_kafka import KafkaError, Message, Producer
from pytest_django import Settings

from common.processes.lifecycle import StopFlag
from common.processes.outages import ServiceUnavailable
from devstack import Stack
from devstack.processes import wait_until
from devstack.stack import Part
from kafka_bridge import client
from kafka_bridge.client import make_producer
from kafka_bridge.lag import lag_by_partition
from kafka_bridge.models import BrokerState
from kafka_bridge.operating import broker_watch
from kafka_bridge.operating.broker_watch import BrokerWatch
from kafka_bridge.operating.lag_sweep import LagSweep
from kafka_bridge.registry import prefixed
from kafka_bridge.relaying.relay import Relay
from tests.stub_app.consumer_groups import NOTICES
from tests.stub_app.events import publish_numbers
from tests.stub_app.routes import NUMBER_DRAWN, RESULTS
from tests.stub_app.routes import NUMBERS as TOPIC
from tests.support.kafka import produce, read_topic
from tests.support.published import unpublished_rows
from tests.support.threads import in_another_session

pytestmark = pytest.mark.django_db(transaction=True)

# The client gives up on a request after this; the broker stays away for several of them.
TIMEOUT_MS = 1000


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A Kafka that only these tests use."""
    elsewhere = {"DATABASE_URL": "elsewhere", "REDIS_URL": "elsewhere"}
    own = Stack("own", root=tmp_path_factory.mktemp("stack"), environ=elsewhere, report=print)
    with own.used():
        yield own


@pytest.fixture
def own_broker(stack: Stack, settings: Settings) -> Part:
    """Its broker, up before the test, and the one that this process knows."""
    broker = stack.part("kafka-1")
    broker.start()
    settings.KAFKA_BOOTSTRAP_SERVERS = f"127.0.0.1:{broker.port}"
    settings.KAFKA_PRODUCER_CONFIG = {"socket.timeout.ms": TIMEOUT_MS, "request.timeout.ms": TIMEOUT_MS}
    return broker


@pytest.fixture
def broker(own_broker: Part, topics: str) -> Iterator[Part]:
    """The broker with the test's topics, up again when they are deleted."""
    yield own_broker
    own_broker.start()


def unpublished() -> int:
    return unpublished_rows().count()


class Complaints:
    """What librdkafka says about the broker."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog
        caplog.set_level(logging.WARNING)

    def forget(self) -> None:
        """Those so far count no more: to be called before the fault, since the client tells each kind only so often."""
        self._caplog.clear()

    def wait_for(self, count: int, producer: Producer | None = None) -> None:
        """Waits for that many complaints: as many timeouts, or refused connections, have passed."""

        def complained() -> bool:
            if producer is not None:
                producer.poll(0)
            return len(self._caplog.records) >= count

        wait_until(complained, 60, "the client does not notice that the broker is away")


@pytest.fixture
def complaints(caplog: pytest.LogCaptureFixture) -> Complaints:
    return Complaints(caplog)


@pytest.mark.parametrize("how", ["frozen", "killed"])
def test_events_written_before_during_and_after_arrive_in_order(how: str, broker: Part, complaints: Complaints) -> None:
    stop = StopFlag()
    running = in_another_session(lambda: Relay(batch_size=10).run(stop))
    publish_numbers(range(30))
    wait_until(lambda: unpublished() == 0, 60, "the relay does not publish")

    complaints.forget()
    broker.freeze() if how == "frozen" else broker.kill()
    publish_numbers(range(30, 60))
    complaints.wait_for(3)
    assert unpublished() == 30
    broker.thaw() if how == "frozen" else broker.start()
    publish_numbers(range(60, 90))
    wait_until(lambda: unpublished() == 0, 60, "the relay does not go on")

    stop.request()
    running.result(60)
    assert first_copies(90) == list(range(90))


def test_its_silences_are_counted_and_the_lag_of_the_last_sweep_stays(
    broker: Part, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker_watch, "ANSWER_SECONDS", 1.0)
    produce(TOPIC, [b"{}"], seconds_ago=60)
    watch, sweep = BrokerWatch(), LagSweep(lambda: [replace(NOTICES, event_types=(NUMBER_DRAWN,))])
    watch.look()
    sweep.look()
    state = BrokerState.objects.get()
    assert (state.silences, state.problems, len(state.brokers)) == (0, [], 1)

    broker.freeze()
    began_at = time.monotonic()
    for _ in range(3):
        watch.look()
    with pytest.raises(ServiceUnavailable):
        sweep.look()
    assert time.monotonic() - began_at < 3 * 2 + 4
    assert BrokerState.objects.get().silences == 3
    assert [lag.messages for lag in lag_by_partition() if lag.milliseconds >= 60_000] == [1]

    def is_heard() -> bool:
        watch.look()
        return BrokerState.objects.get().silences == 0

    broker.thaw()
    wait_until(is_heard, 30, "the broker's answer is not seen")


def first_copies(count: int) -> list[int]:
    sent = [json.loads(message.value() or b"")["number"] for message in read_topic(TOPIC, count)]
    return list(dict.fromkeys(sent))


def test_a_message_waits_for_the_broker_however_long_it_takes(broker: Part, complaints: Complaints) -> None:
    sender = Sender(make_producer())
    broker.kill()
    sender.send(0)
    complaints.wait_for(3, sender.producer)
    broker.start()
    sender.send(1)
    sender.send_again_what_failed()
    assert first_copies(2) == [0, 1]


def test_with_a_finite_timeout_a_later_message_would_overtake(broker: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    finite = {"message.timeout.ms": 5 * TIMEOUT_MS}
    with monkeypatch.context() as patched:
        patched.setattr(client, "Producer", lambda config: Producer(config | finite))
        sender = Sender(make_producer())
    broker.kill()
    sender.send(0)
    wait_until(sender.has_failed, 60, "the message does not time out")
    broker.start()
    sender.reconnect()
    sender.send(1)
    sender.send_again_what_failed()
    assert first_copies(2) == [1, 0]


class Sender:
    """Sends numbered messages of one key, and at the end those that failed once more, as a relay would."""

    def __init__(self, producer: Producer) -> None:
        self.producer = producer
        self.failed: list[int] = []
        producer.list_topics(timeout=10)

    def send(self, number: int) -> None:
        def on_delivery(error: KafkaError | None, message: Message) -> None:
            if error is not None:
                self.failed.append(number)

        body = json.dumps({"number": number}).encode()
        self.producer.produce(prefixed(TOPIC), value=body, key=b"1", on_delivery=on_delivery)

    def reconnect(self) -> None:
        """Waits until the broker takes messages again, and this producer knows."""
        probe = make_producer()
        probe.produce(prefixed(RESULTS), value=b"{}", key=b"1")
        assert probe.flush(30) == 0
        self.producer.list_topics(timeout=30)

    def has_failed(self) -> bool:
        self.producer.poll(0)
        return bool(self.failed)

    def send_again_what_failed(self) -> None:
        assert self.producer.flush(30) == 0
        for number in self.failed:
            self.send(number)
        assert self.producer.flush(30) == 0
