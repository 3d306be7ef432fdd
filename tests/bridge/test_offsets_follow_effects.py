"""A committed offset never runs ahead of the effects it stands for."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from django.db import OperationalError

from common.processes.lifecycle import StopFlag
from devstack.processes import wait_until
from kafka_bridge.client import group_lag
from kafka_bridge.consuming.consumer import GroupConsumer
from kafka_bridge.models import DeadLetter
from tests.stub_app.consumer_groups import BOOKINGS, BookingRequest, book
from tests.stub_app.events import request, winners
from tests.stub_app.models import Booking
from tests.stub_app.routes import REQUESTS as TOPIC
from tests.stub_app.routes import RESULTS
from tests.support.kafka import consume_everything, header, produce, read_topic, relay_everything
from tests.support.rebalance import SOON_EXPELLED, Rebalance, consume_in_background

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("topics")]


@pytest.fixture(autouse=True)
def _short_pauses(settings: Any) -> None:
    settings.CONSUMER_BACKOFF_SECONDS = 0.05


def ask(user_ids: Sequence[int], *, seats: int = 10) -> None:
    produce(TOPIC, [request(user_id, seats=seats) for user_id in user_ids])


def lag() -> int:
    return group_lag(BOOKINGS.group_id, BOOKINGS.topics)


def test_what_others_put_on_the_topic_is_handled_and_answered() -> None:
    ask([1, 2, 3], seats=2)
    consume_everything(BOOKINGS)
    assert (winners(), lag()) == ([1, 2], 0)
    relay_everything()
    results = [json.loads(item.value() or b"") for item in read_topic(RESULTS, 3)]
    assert [(item["userId"], item["status"]) for item in results] == [(1, "SUCCESS"), (2, "SUCCESS"), (3, "FAILED")]


def test_poison_reaches_the_dead_letter_topic() -> None:
    ask([1])
    produce(TOPIC, [b"{"])
    consume_everything(BOOKINGS)
    relay_everything()
    (letter,) = read_topic(f"{TOPIC}.DLT", 1)
    assert letter.value() == b"{"
    assert header(letter, "x-error-class") == "PoisonMessage"
    assert winners() == [1]


def test_no_offset_moves_while_the_database_is_away() -> None:
    ask([1, 2])
    tries: list[int] = []
    away = True

    def handle(requests: Sequence[BookingRequest]) -> None:
        tries.append(len(requests))
        if away:
            raise OperationalError("the server is away")
        book(requests)

    stop = StopFlag()
    running = consume_in_background(replace(BOOKINGS, handle=handle), stop)
    wait_until(lambda: len(tries) >= 3, 20, "the batch is not tried again")
    assert (lag(), winners(), DeadLetter.objects.count()) == (2, [], 0)
    away = False
    wait_until(lambda: lag() == 0, 20, "the consumer does not go on")
    stop.request()
    running.result(20)
    assert winners() == [1, 2]


def test_a_partition_that_waits_does_not_hold_up_the_others() -> None:
    tries: list[int] = []

    def handle(requests: Sequence[BookingRequest]) -> None:
        if any(request.room == "stuck" for request in requests):
            tries.append(len(requests))
            raise OperationalError("a lock that is not released")
        book(requests)

    for room, partition_key in (("stuck", b"A"), ("other", b"B")):
        produce(TOPIC, [request(1, room=room)], key=partition_key)
    assert len({message.partition() for message in read_topic(TOPIC, 2)}) == 2
    stop = StopFlag()
    running = consume_in_background(replace(BOOKINGS, handle=handle), stop)
    wait_until(lambda: len(tries) >= 2, 20, "the batch is not tried again")
    wait_until(lambda: lag() == 1, 20, "the other partition is held up")
    stop.request()
    running.result(20)
    assert Booking.objects.get().room == "other"


def test_a_consumer_that_dies_before_its_offset_is_committed_repeats_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ask([1, 2])
    with monkeypatch.context() as patched:
        patched.setattr(GroupConsumer, "_commit", lambda *args: None)
        consume_everything(BOOKINGS)
    assert (lag(), winners()) == (2, [1, 2])
    answered = Booking.objects.count()
    consume_everything(BOOKINGS)
    assert (lag(), winners(), Booking.objects.count()) == (0, [1, 2], answered)


def test_a_rebalance_in_mid_batch_repeats_no_effect_and_moves_no_offset_back(settings: Any) -> None:
    settings.KAFKA_CONSUMER_CONFIG = SOON_EXPELLED
    ask([1, 2, 1, 3, 4], seats=3)
    rebalance = Rebalance(BOOKINGS)
    rebalance.run()
    assert rebalance.second_try == [None]
    assert (winners(), lag(), Booking.objects.count()) == ([1, 2, 3], 0, 5)
