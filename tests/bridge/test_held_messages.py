"""Rows that are passed unsent: they delay nothing but what must follow them, and are sent in order afterwards."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from random import Random
from statistics import median

import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from django.db import transaction
from pytest_django import Settings

from common.processes.lifecycle import StopFlag
from devstack.processes import wait_until
from kafka_bridge.client import ensure_topics
from kafka_bridge.models import Alert, DeadLetter, HeldMessage, OutboxHold, OutboxMessage
from kafka_bridge.outbox.holds import send_again
from kafka_bridge.outbox.published import anything_unpublished
from kafka_bridge.outbox.writing import Message, publish
from kafka_bridge.registry import prefixed
from kafka_bridge.relaying.relay import Relay
from tests.stub_app.events import publish_numbers
from tests.stub_app.routes import NUMBER_DRAWN, NUMBERS
from tests.support.kafka import lose_topics, read_to_end, relay_everything, set_topic_config
from tests.support.published import unpublished_rows

from .scenes import numbers

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("topics")]

OTHER = "stub.other.v1"
OTHER_TOPIC = "stub-others"


@pytest.fixture(autouse=True)
def _second_topic(topics: str, settings: Settings) -> Iterator[None]:
    settings.KAFKA_ROUTES = settings.KAFKA_ROUTES | {
        OTHER: replace(settings.KAFKA_ROUTES[NUMBER_DRAWN], topic=OTHER_TOPIC)
    }
    ensure_topics(settings.KAFKA_ROUTES)
    yield
    ensure_topics(settings.KAFKA_ROUTES)


@pytest.fixture
def looking_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pass looks at what is held."""
    monkeypatch.setattr("kafka_bridge.relaying.relay._HELD_SECONDS", 0.0)


def publish_other(which: range, *, key: int = 1) -> None:
    for number in which:
        with transaction.atomic():
            publish([Message(OTHER, {"key": key, "number": number})])


def passes(some_relay: Relay, count: int = 3) -> None:
    for _ in range(count):
        some_relay.relay_batch(StopFlag())


@pytest.mark.usefixtures("looking_always")
def test_rows_of_a_missing_topic_wait_in_order_and_the_others_are_sent_once(settings: Settings) -> None:
    lose_topics(OTHER_TOPIC)
    some_relay = Relay()
    publish_other(range(3))
    publish_numbers(range(5))
    passes(some_relay)
    publish_other(range(3, 5))
    publish_numbers(range(5, 8))
    passes(some_relay)
    assert numbers(read_to_end(NUMBERS)) == list(range(8))
    held = HeldMessage.objects.order_by("message_id")
    assert [(row.topic, row.reason) for row in held] == [(OTHER_TOPIC, "topic")] * 5
    assert held[0].last_error == f"topic {prefixed(OTHER_TOPIC)} does not exist: run create_topics"
    assert held[0].attempts > 0
    assert Alert.objects.get(ended_at=None).rule == f"topic-{prefixed(OTHER_TOPIC)}"
    some_relay.close()

    # Another relay goes on with the list.
    ensure_topics(settings.KAFKA_ROUTES)
    publish_other(range(5, 6))
    relay_everything()
    assert numbers(read_to_end(OTHER_TOPIC)) == list(range(6))
    assert numbers(read_to_end(NUMBERS)) == list(range(8))
    assert not Alert.objects.filter(ended_at=None).exists()
    assert not HeldMessage.objects.exists()


@pytest.mark.usefixtures("looking_always")
def test_a_held_key_waits_with_all_its_later_events_and_other_keys_of_its_topic_go_on() -> None:
    some_relay = Relay()
    hold = OutboxHold.objects.create(topic=NUMBERS, key=b"1", reason="wrong price")
    for first in (0, 5):
        publish_numbers(range(first, first + 5), key=1)
        publish_numbers(range(first + 100, first + 105), key=2)
        passes(some_relay)
    assert numbers(read_to_end(NUMBERS)) == list(range(100, 110))
    assert set(HeldMessage.objects.values_list("reason", flat=True)) == {"key"}
    assert unpublished_rows().count() == 10

    hold.delete()
    publish_numbers(range(10, 12), key=1)
    passes(some_relay)
    some_relay.close()
    relay_everything()
    assert [number for number in numbers(read_to_end(NUMBERS)) if number < 100] == list(range(12))


@pytest.mark.usefixtures("looking_always")
def test_a_held_topic_is_named_by_an_alert_until_it_is_released() -> None:
    some_relay = Relay()
    hold = OutboxHold.objects.create(topic=NUMBERS, key=None, reason="a consumer is broken")
    publish_numbers(range(3))
    publish_other(range(2))
    passes(some_relay)
    assert read_to_end(NUMBERS) == []
    assert numbers(read_to_end(OTHER_TOPIC)) == [0, 1]
    assert Alert.objects.get(ended_at=None).summary == (
        f"topic {prefixed(NUMBERS)} is held by an operator (a consumer is broken):"
        " release it when its messages may be sent"
    )
    hold.delete()
    passes(some_relay, 4)
    assert numbers(read_to_end(NUMBERS)) == [0, 1, 2]
    assert not Alert.objects.filter(ended_at=None).exists()
    some_relay.close()


@pytest.mark.usefixtures("looking_always")
def test_a_key_held_while_its_topic_is_missing_lets_the_topic_go_on_once_it_is_back(settings: Settings) -> None:
    lose_topics(OTHER_TOPIC)
    some_relay = Relay()
    publish_other(range(2), key=1)
    publish_other(range(10, 12), key=2)
    passes(some_relay)
    hold = OutboxHold.objects.create(topic=OTHER_TOPIC, key=b"1", reason="wrong price")
    ensure_topics(settings.KAFKA_ROUTES)
    passes(some_relay, 4)
    publish_other(range(12, 13), key=2)
    passes(some_relay)
    assert numbers(read_to_end(OTHER_TOPIC)) == [10, 11, 12]
    hold.delete()
    passes(some_relay, 4)
    sent = numbers(read_to_end(OTHER_TOPIC))
    # The two keys lie on different partitions, whose messages come in any order.
    assert [[n for n in sent if n < 10], [n for n in sent if n >= 10]] == [[0, 1], [10, 11, 12]]
    some_relay.close()


def test_a_row_to_be_sent_again_is_sent_under_its_id_and_holds_nothing_back() -> None:
    publish_numbers(range(3))
    relay_everything()
    first = OutboxMessage.objects.order_by("id")[0]
    send_again([first.event_id])
    assert [row.id for row in unpublished_rows()] == [first.id]
    publish_numbers(range(3, 5))
    some_relay = Relay()
    some_relay.relay_batch(StopFlag())
    assert sorted(numbers(read_to_end(NUMBERS))) == [0, 0, 1, 2, 3, 4]
    some_relay.close()
    assert not HeldMessage.objects.exists()


def test_a_row_that_waits_for_its_relay_is_not_sent_twice_when_it_is_asked_for() -> None:
    publish_numbers(range(1))
    send_again(OutboxMessage.objects.values_list("event_id", flat=True))
    relay_everything()
    assert numbers(read_to_end(NUMBERS)) == [0]


@pytest.mark.usefixtures("looking_always")
def test_held_rows_that_are_deleted_or_were_published_by_a_relay_of_the_version_before_are_dropped(
    settings: Settings,
) -> None:
    lose_topics(OTHER_TOPIC)
    some_relay = Relay()
    publish_other(range(3))
    passes(some_relay)
    rows = list(OutboxMessage.objects.order_by("id"))
    OutboxMessage.objects.filter(id=rows[0].id).update(published_at="2026-01-01T00:00:00Z")
    rows[1].delete()
    ensure_topics(settings.KAFKA_ROUTES)
    passes(some_relay, 4)
    some_relay.close()
    assert numbers(read_to_end(OTHER_TOPIC)) == [2]
    assert not HeldMessage.objects.exists()


SMALL = "takes-small-messages"
# Random, or the producer's compression would bring it under the limit.
NOISE = Random(1).randbytes(10_000).hex()


@pytest.fixture
def small_topic(settings: Settings) -> Iterator[None]:
    settings.KAFKA_ROUTES = settings.KAFKA_ROUTES | {
        NUMBER_DRAWN: replace(settings.KAFKA_ROUTES[NUMBER_DRAWN], topic=SMALL)
    }
    admin = AdminClient({"bootstrap.servers": settings.KAFKA_BOOTSTRAP_SERVERS})
    admin.create_topics([NewTopic(prefixed(SMALL), 1, 1, config={"max.message.bytes": "2000"})])[
        prefixed(SMALL)
    ].result()
    yield
    admin.delete_topics([prefixed(SMALL)])[prefixed(SMALL)].result()


@pytest.mark.usefixtures("small_topic")
def test_rows_refused_in_mid_batch_become_dead_letters_and_no_later_row_of_their_key_overtakes() -> None:
    refused = {300, 900}
    with transaction.atomic():
        publish(
            Message(NUMBER_DRAWN, {"key": 1, "number": n, "text": NOISE if n in refused else ""}) for n in range(1900)
        )
    relay_everything(batch_size=2000)
    sent = [json.loads(message.value() or b"")["number"] for message in read_to_end(SMALL)]
    assert list(dict.fromkeys(sent)) == [n for n in range(1900) if n not in refused]
    assert len(sent) == 1898
    letters = DeadLetter.objects.order_by("id")
    assert [json.loads(bytes(letter.payload or b""))["number"] for letter in letters] == sorted(refused)
    assert not unpublished_rows().exists()


# Each of them is sent and acknowledged alone until the refused row behind them is found.
SEARCHED_ROWS = 800


def passes_of_a_search() -> list[float]:
    """Have the last of many rows of a topic refused; in each pass a row of another topic must be sent, and once.

    Returns the seconds of each pass until the refused row is found.
    """
    some_relay = Relay()
    publish_other(range(1))
    passes(some_relay)
    with transaction.atomic():
        publish(
            Message(NUMBER_DRAWN, {"key": 1, "number": n, "text": NOISE if n == SEARCHED_ROWS else ""})
            for n in range(SEARCHED_ROWS + 1)
        )
    seconds: list[float] = []
    while not DeadLetter.objects.exists():
        publish_other(range(len(seconds) + 1, len(seconds) + 2))
        began = time.monotonic()
        some_relay.relay_batch(StopFlag())
        seconds.append(time.monotonic() - began)
        assert numbers(read_to_end(OTHER_TOPIC)) == list(range(len(seconds) + 1))
    some_relay.close()
    assert numbers(read_to_end(SMALL)) == list(range(SEARCHED_ROWS))
    return seconds


@pytest.mark.usefixtures("small_topic")
def test_the_search_for_a_refused_row_holds_up_other_topics_for_a_moment_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # So short that the fastest machine needs several passes.
    monkeypatch.setattr("kafka_bridge.relaying.publisher._SINGLY_SECONDS", 0.02)
    # The first pass also makes the producers.
    _, *seconds = passes_of_a_search()
    assert seconds
    assert median(seconds) < 0.6


@pytest.mark.usefixtures("small_topic")
def test_a_search_without_its_limit_would_hold_them_up_until_the_row_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kafka_bridge.relaying.publisher._SINGLY_SECONDS", 3600.0)
    assert len(passes_of_a_search()) == 1


@pytest.mark.usefixtures("small_topic", "looking_always")
def test_new_rows_wait_behind_rows_sent_again_that_are_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    set_topic_config(SMALL, {"max.message.bytes": "100000"})
    with transaction.atomic():
        publish(Message(NUMBER_DRAWN, {"key": 1, "number": n, "text": NOISE}) for n in range(3))
    relay_everything()
    # Sent again, the topic refuses them.
    set_topic_config(SMALL, {"max.message.bytes": "2000"})
    send_again(list(OutboxMessage.objects.values_list("event_id", flat=True)))
    publish_numbers(range(3, 6))
    some_relay = Relay()
    with monkeypatch.context() as patched:
        patched.setattr("kafka_bridge.relaying.relay._PATIENCE_BESIDE_OTHERS", 0.0)
        some_relay.relay_batch(StopFlag())
    assert HeldMessage.objects.filter(reason="topic").count() == 3

    def is_everything_sent() -> bool:
        some_relay.relay_batch(StopFlag())
        return not anything_unpublished()

    wait_until(is_everything_sent, 30, "not everything is sent")
    some_relay.close()
    assert numbers(read_to_end(SMALL)) == list(range(6))
    assert DeadLetter.objects.count() == 3
