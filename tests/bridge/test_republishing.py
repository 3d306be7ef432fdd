"""republish_topic sends again what a deleted topic had: the same messages, and none that is not the topic's."""

from collections.abc import Iterator
from datetime import timedelta
from io import StringIO
from random import Random
from typing import Any
from uuid import UUID

import pytest
from confluent_kafka import Message as KafkaMessage
from django.conf import settings
from django.core.management import CommandError, call_command
from django.db import transaction

from common.postgres.clock import database_time
from common.processes.lifecycle import StopFlag
from kafka_bridge.client import ensure_topics
from kafka_bridge.consuming.dead_letters import write_dead_letters
from kafka_bridge.models import OperatorAction, OutboxMessage
from kafka_bridge.outbox.writing import Message, publish
from kafka_bridge.registry import Rejected, prefixed
from kafka_bridge.relaying.republish import Republisher, Selection
from tests.stub_app.consumer_groups import BOOKINGS
from tests.stub_app.events import message, publish_numbers, request_body
from tests.stub_app.models import Booking
from tests.stub_app.routes import BOOKING_REQUESTED, REQUESTS
from tests.stub_app.routes import NUMBER_DRAWN as EVENT
from tests.stub_app.routes import NUMBERS as TOPIC
from tests.support.kafka import (
    consume_everything,
    header,
    lose_topics,
    read_to_end,
    read_topic,
    relay_everything,
    set_topic_config,
)

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("topics")]

DLT = f"{TOPIC}.DLT"


@pytest.fixture(autouse=True)
def _topics_created_again(topics: str) -> Iterator[None]:
    yield
    ensure_topics(settings.KAFKA_ROUTES)


def republish(*arguments: str) -> str:
    """What the command prints, without the prefix of the test."""
    output = StringIO()
    try:
        call_command("republish_topic", *arguments, "--reason", "deleted by mistake", stdout=output, stderr=StringIO())
    except CommandError as error:
        return f"exit 1: {error}".replace(prefixed(""), "")
    return output.getvalue().strip().replace(prefixed(""), "")


def lose(*topics: str) -> None:
    """Delete topics, and create them anew."""
    lose_topics(*topics)
    ensure_topics(settings.KAFKA_ROUTES)


def content(messages: list[KafkaMessage]) -> list[tuple[Any, ...]]:
    return [(each.key(), each.value(), each.headers()) for each in messages]


def dead_letter() -> None:
    with transaction.atomic():
        headers = (("ce_type", EVENT.encode()), ("ce_id", b"none"))
        write_dead_letters(
            "ranking", "group", [Rejected(message(b"poison", topic=TOPIC, headers=headers), ValueError("bad"))]
        )


def test_events_and_copies_are_sent_again_each_to_their_own_topic() -> None:
    publish_numbers(range(5))
    dead_letter()
    relay_everything()
    events, copies = content(read_topic(TOPIC, 5)), content(read_topic(DLT, 1))
    marks = list(OutboxMessage.objects.order_by("id").values_list("id", "published_at"))
    lose(TOPIC, DLT)

    assert republish(TOPIC) == f"5 messages published again to {TOPIC}; done"
    assert content(read_to_end(TOPIC)) == events
    assert read_to_end(DLT) == []
    assert republish(prefixed(DLT)) == f"1 messages published again to {DLT}; done"
    assert content(read_to_end(DLT)) == copies
    assert len(read_to_end(TOPIC)) == 5
    # No relay sends them once more, and no row counts as waiting.
    assert list(OutboxMessage.objects.order_by("id").values_list("id", "published_at")) == marks


def test_begin_and_end_are_in_the_audit_trail_and_a_dry_run_is_not() -> None:
    publish_numbers(range(3))
    relay_everything()
    first, _, last = OutboxMessage.objects.order_by("id").values_list("id", flat=True)
    republish(TOPIC, "--dry-run")
    assert not OperatorAction.objects.exists()
    republish(TOPIC, "--after", str(first), "--since", "2026-01-01T00:00:00+09:00")
    found = OperatorAction.objects.order_by("id").values_list("action", "subject", "reason", "after")
    assert list(found) == [
        (
            "topic.republish", f"topic {TOPIC}", "deleted by mistake",
            {"since": "2025-12-31T15:00:00Z", "afterRow": first},
        ),
        (
            "topic.republish_end", f"topic {TOPIC}", "deleted by mistake",
            {"published": 2, "refused": 0, "lastRow": last},
        ),
    ]  # fmt: skip


def test_requests_that_were_lost_are_decided_and_those_decided_stay_as_they_are() -> None:
    for user_id in (1, 2, 3):
        body = request_body(user_id, seats=2)
        with transaction.atomic():
            publish([Message(BOOKING_REQUESTED, body, event_id=UUID(body["requestId"]))])
        if user_id == 1:
            relay_everything()
            consume_everything(BOOKINGS)
    relay_everything()
    lose(REQUESTS)

    assert republish(REQUESTS) == f"3 messages published again to {REQUESTS}; done"
    consume_everything(BOOKINGS)
    decided = Booking.objects.order_by("request_id").values_list("user_id", "reason")
    assert list(decided) == [(1, ""), (2, ""), (3, "FULL")]


def test_rows_that_wait_for_the_relay_are_left_to_it_and_older_ones_to_choice() -> None:
    publish_numbers(range(3))
    relay_everything()
    OutboxMessage.objects.update(created_at=database_time() - timedelta(hours=2))
    since = database_time() - timedelta(hours=1)
    publish_numbers(range(3, 5))
    relay_everything()
    publish_numbers(range(5, 6))
    lose(TOPIC)

    would = f"messages would be published again to {TOPIC}"
    assert republish(TOPIC, "--dry-run") == f"5 {would}"
    assert republish(TOPIC, "--dry-run", "--since", since.isoformat()) == f"2 {would}"
    assert read_to_end(TOPIC) == []
    republish(TOPIC, "--since", since.isoformat())
    assert len(read_to_end(TOPIC)) == 2


class StopsAfterTheFirstBatch(StopFlag):
    republisher: Republisher

    def __bool__(self) -> bool:
        return self.republisher.published > 0


def test_one_that_was_interrupted_goes_on_behind_the_last_row() -> None:
    publish_numbers(range(5))
    relay_everything()
    lose(TOPIC)
    ids = list(OutboxMessage.objects.order_by("id").values_list("id", flat=True))
    selection = Selection(TOPIC, before=database_time())
    stop = StopsAfterTheFirstBatch()
    stop.republisher = Republisher(selection, batch_size=2)
    stop.republisher.run(stop)
    assert (stop.republisher.published, stop.republisher.last_id) == (2, ids[1])

    assert republish(TOPIC, "--after", str(ids[1])) == f"3 messages published again to {TOPIC}; done"
    rows = OutboxMessage.objects.order_by("id").values_list("event_id", flat=True)
    assert [header(each, "ce_id") for each in read_to_end(TOPIC)] == [str(event_id) for event_id in rows]


def test_what_the_topic_refuses_does_not_hold_up_the_rest() -> None:
    # Random, or the producer's compression would bring it under the limit.
    noise = Random(1).randbytes(10_000).hex()
    with transaction.atomic():
        publish(Message(EVENT, {"key": 1, "number": n, "text": noise if n == 1 else ""}) for n in range(4))
    relay_everything()
    lose(TOPIC)
    set_topic_config(TOPIC, {"max.message.bytes": "2000"})
    assert republish(TOPIC) == (
        f"3 messages published again to {TOPIC}, 1 refused by the broker (the log names them); done"
    )


def test_a_topic_that_is_not_there_yet_is_named() -> None:
    publish_numbers(range(1))
    relay_everything()
    lose_topics(TOPIC)
    assert republish(TOPIC) == f"exit 1: there is no topic {TOPIC}: run create_topics first"


@pytest.mark.parametrize("name", ["issue-worker", "stub", ""])
def test_a_topic_that_the_routes_do_not_name_is_refused_with_those_they_name(name: str) -> None:
    assert republish(name).startswith(f"exit 1: KAFKA_ROUTES names no topic {name}; known: {REQUESTS}, {REQUESTS}.DLT")
