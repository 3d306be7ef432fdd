"""Routes change on a database in use: what stands on the earlier topics is named, moved or read."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from random import Random
from uuid import UUID

import pytest
from django.core.management import CommandError, call_command
from django.db import transaction
from pytest_django import Settings

from common.processes.lifecycle import StopFlag
from kafka_bridge.client import delete_topics, ensure_topics
from kafka_bridge.consuming.dead_letters import write_dead_letters
from kafka_bridge.errors import PoisonMessage
from kafka_bridge.models import DeadLetter, HeldMessage, OutboxMessage
from kafka_bridge.outbox.holds import send_again
from kafka_bridge.outbox.writing import Message, publish
from kafka_bridge.redriving.replay import ReplayResult, replay_letter
from kafka_bridge.registry import ReceivedMessage, Rejected, groups, is_of_types, prefixed, topics_with_history
from kafka_bridge.routes import Route
from tests.stub_app.events import request_body
from tests.stub_app.models import Booking
from tests.stub_app.routes import BOOKING_DECIDED, BOOKING_REQUESTED, REQUESTS, ROUTES
from tests.support.kafka import consume_everything, header, read_to_end, read_topic, relay_everything, set_topic_config
from tests.support.published import unpublished_rows

pytestmark = pytest.mark.django_db(transaction=True)

FORMER = "stub-former-requests"
# Random, or the producer's compression would bring it under the limit.
NOISE = Random(1).randbytes(10_000).hex()


@pytest.fixture
def switch(topics: str, settings: Settings) -> Iterator[Callable[[], None]]:
    """Requests go to FORMER under another key until ``switch()`` puts the present routes in force."""
    settings.KAFKA_ROUTES = ROUTES | {
        BOOKING_REQUESTED: replace(ROUTES[BOOKING_REQUESTED], topic=FORMER, key="room:{room}", dead_letter_topic="")
    }
    created, _ = ensure_topics(settings.KAFKA_ROUTES)

    def to_present_routes() -> None:
        settings.KAFKA_ROUTES = ROUTES

    yield to_present_routes
    delete_topics(created)


def request_room(user_id: int, **extra: object) -> UUID:
    body = request_body(user_id) | extra
    request_id = UUID(body["requestId"])
    with transaction.atomic():
        publish([Message(BOOKING_REQUESTED, body, event_id=request_id)])
    return request_id


def run_create_topics() -> list[str]:
    return printed("create_topics")


def printed(*command: str) -> list[str]:
    """The lines that a command prints, its error last."""
    lines: list[str] = []

    class Lines:
        def write(self, text: str) -> None:
            lines.extend(text.splitlines())

    try:
        call_command(*command, stdout=Lines(), stderr=Lines())
    except CommandError as error:
        lines.append(f"exit 1: {error}")
    return lines


def test_a_refused_row_of_an_earlier_route_is_a_dead_letter_and_the_relay_goes_on(switch: Callable[[], None]) -> None:
    set_topic_config(FORMER, {"max.message.bytes": "2000"})
    refused = request_room(1, note=NOISE)
    accepted = request_room(2)
    switch()
    relay_everything()

    assert not unpublished_rows().exists()
    letter = DeadLetter.objects.get()
    assert (letter.consumer_group, letter.topic, letter.event_id) == ("relay", FORMER, refused)
    assert Booking.objects.get().request_id == refused
    # The type's dead-letter topic of today has the copy.
    (copy,) = read_topic(f"{REQUESTS}.DLT", 1)
    assert (header(copy, "ce_id"), header(copy, "x-original-topic")) == (str(refused), prefixed(FORMER))
    assert [header(item, "ce_id") for item in read_to_end(FORMER)] == [str(accepted)]


@pytest.mark.parametrize("is_pruned", [False, True], ids=["its row is there", "its row was pruned"])
def test_a_refused_row_of_an_earlier_route_is_replayed_where_its_type_goes_now(
    switch: Callable[[], None], is_pruned: bool
) -> None:
    set_topic_config(FORMER, {"max.message.bytes": "2000"})
    refused = request_room(1, note=NOISE)
    relay_everything()
    if is_pruned:
        OutboxMessage.objects.all().delete()
    switch()
    assert replay_letter(DeadLetter.objects.get().pk, StopFlag()).result == ReplayResult.APPLIED
    relay_everything()
    (message,) = read_to_end(REQUESTS)
    assert (header(message, "ce_id"), message.key()) == (str(refused), b"blue")
    assert not read_to_end(FORMER)


def test_a_dead_letter_whose_topic_and_type_no_route_has_is_kept_without_a_copy(settings: Settings) -> None:
    message = ReceivedMessage("gone", 0, 5, 0, b"1", b"{}", (("ce_type", b"gone.v1"),))
    for _ in range(2):
        with transaction.atomic():
            write_dead_letters("bookings", "group", [Rejected(message, PoisonMessage("no"))])
    assert DeadLetter.objects.get().topic == "gone"
    assert not OutboxMessage.objects.exists()


def test_a_published_event_that_is_sent_again_goes_where_its_type_goes_now(switch: Callable[[], None]) -> None:
    request_id = request_room(1)
    relay_everything()
    switch()
    send_again([request_id])
    relay_everything()

    (moved,) = read_to_end(REQUESTS)
    assert (header(moved, "ce_id"), moved.key()) == (str(request_id), b"blue")
    row = OutboxMessage.objects.get()
    assert (row.topic, bytes(row.key or b"")) == (REQUESTS, b"blue")
    assert not HeldMessage.objects.exists()
    consume_everything(groups()["bookings"])
    assert Booking.objects.get().request_id == request_id


def test_an_unpublished_event_stays_where_its_relay_expects_it(switch: Callable[[], None]) -> None:
    request_id = request_room(1)
    switch()
    send_again([request_id])
    assert OutboxMessage.objects.get().topic == FORMER
    relay_everything()
    assert [header(item, "ce_id") for item in read_to_end(FORMER)] == [str(request_id)]


def test_create_topics_refuses_until_the_earlier_topic_is_drained(
    switch: Callable[[], None], settings: Settings
) -> None:
    earlier = settings.KAFKA_ROUTES
    request_room(1)
    request_room(2)
    switch()
    lines = run_create_topics()
    assert lines[0] == f"{prefixed(FORMER)}: 2 {BOOKING_REQUESTED} not published yet"
    assert lines[1] == f"{prefixed(FORMER)}: 2 {BOOKING_REQUESTED} not decided yet"
    assert lines[2].startswith("exit 1: topics of earlier routes are not drained (2 lines above); nothing was changed.")
    assert "relay_outbox --until-idle" in lines[2]

    settings.KAFKA_ROUTES = earlier
    relay_everything()
    settings.KAFKA_ROUTES = ROUTES
    assert run_create_topics()[:1] == [f"{prefixed(FORMER)}: 2 {BOOKING_REQUESTED} not decided yet"]

    settings.KAFKA_ROUTES = earlier
    consume_everything(groups()["bookings"])
    relay_everything()
    settings.KAFKA_ROUTES = ROUTES
    done, hint = run_create_topics()
    assert done == "all topics exist"
    assert f"KAFKA_FORMER_TOPICS='{json.dumps({BOOKING_REQUESTED: [FORMER]})}'" in hint

    settings.KAFKA_FORMER_TOPICS = {BOOKING_REQUESTED: (FORMER,)}
    assert run_create_topics() == ["all topics exist"]


def test_events_that_a_group_has_begun_and_not_finished_are_counted(
    switch: Callable[[], None], settings: Settings
) -> None:
    bookings, notices = groups()["bookings"], groups()["notices"]
    former_results = "stub-former-results"
    settings.KAFKA_ROUTES = settings.KAFKA_ROUTES | {BOOKING_DECIDED: Route(former_results, key="room", partitions=1)}
    earlier = settings.KAFKA_ROUTES
    created, _ = ensure_topics(earlier)
    try:
        for user_id in (1, 2):
            request_room(user_id)
            relay_everything()
            consume_everything(bookings)
            relay_everything()
            if user_id == 1:
                switch()
                # It may be a group that is not used at all.
                assert run_create_topics()[0] == "all topics exist"
                settings.KAFKA_ROUTES = earlier
                consume_everything(notices)
        switch()
        (line, _) = run_create_topics()
        assert line == f"{prefixed(former_results)}: 1 {BOOKING_DECIDED} not handled yet by the group notices"
        settings.KAFKA_ROUTES = earlier
        consume_everything(notices)
        switch()
        assert run_create_topics()[0] == "all topics exist"
    finally:
        delete_topics(created)


def test_events_of_an_earlier_topic_are_published_again_where_their_type_goes_now(
    switch: Callable[[], None], settings: Settings
) -> None:
    blue, red = request_room(1), request_room(2, room="red")
    relay_everything()
    switch()
    with pytest.raises(CommandError, match=f"KAFKA_ROUTES names no topic {FORMER}"):
        call_command("republish_topic", FORMER, "--reason", "switched")
    settings.KAFKA_FORMER_TOPICS = {BOOKING_REQUESTED: (FORMER,)}
    lines = printed("republish_topic", FORMER, "--reason", "switched")
    assert lines == [f"2 messages published again to {prefixed(REQUESTS)}; done"]
    found = {(header(item, "ce_id"), item.key()) for item in read_to_end(REQUESTS)}
    assert found == {(str(blue), b"blue"), (str(red), b"red")}
    assert len(read_to_end(FORMER)) == 2


def test_history_of_a_type_is_on_its_present_and_its_earlier_topics(settings: Settings) -> None:
    settings.KAFKA_FORMER_TOPICS = {BOOKING_REQUESTED: ("a", "b"), BOOKING_DECIDED: ("c",)}
    assert topics_with_history([BOOKING_REQUESTED]) == {REQUESTS, "a", "b"}
    message = ReceivedMessage("c", 0, 0, 0, None, b"{}", (("ce_type", BOOKING_DECIDED.encode()),))
    assert not is_of_types(message, [BOOKING_REQUESTED])
    settings.KAFKA_FORMER_TOPICS = {}
    with pytest.raises(PoisonMessage):
        is_of_types(message, [BOOKING_REQUESTED])
