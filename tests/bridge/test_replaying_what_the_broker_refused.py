"""An event that the broker refused is published again under its id; one that is refused again is open again."""

import json
from uuid import UUID, uuid4

import pytest
from django.db import transaction

from common.processes.lifecycle import StopFlag
from kafka_bridge import registry
from kafka_bridge.models import DeadLetter, OutboxMessage
from kafka_bridge.outbox.writing import Message, publish
from kafka_bridge.redriving.replay import ReplayResult, replay_letter
from tests.bridge.test_what_the_broker_refuses import NOISE, SMALL, small_topic
from tests.stub_app.events import request_body
from tests.stub_app.models import Booking
from tests.stub_app.routes import BOOKING_REQUESTED
from tests.stub_app.routes import NUMBER_DRAWN as EVENT
from tests.support.kafka import header, read_to_end, relay_everything, set_topic_config

__all__ = ["small_topic"]

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("small_topic")]


def refused() -> tuple[UUID, DeadLetter]:
    event_id = uuid4()
    with transaction.atomic():
        publish([Message(EVENT, {"key": 1, "number": 1, "text": NOISE}, event_id=event_id)])
    relay_everything()
    return event_id, DeadLetter.objects.get()


def replayed(letter: DeadLetter) -> ReplayResult:
    return replay_letter(letter.pk, StopFlag()).result


def state(letter: DeadLetter) -> tuple[str, int]:
    letter.refresh_from_db()
    return letter.state, letter.replays


ROWS = pytest.mark.parametrize("is_pruned", [False, True], ids=["its row is there", "its row was pruned"])


@ROWS
def test_it_is_published_under_its_id_once_the_broker_takes_it(is_pruned: bool) -> None:
    event_id, letter = refused()
    if is_pruned:
        OutboxMessage.objects.all().delete()
    set_topic_config(SMALL, {"max.message.bytes": "1000000"})
    assert (replayed(letter), state(letter)) == (ReplayResult.APPLIED, ("replayed", 1))
    relay_everything()
    (message,) = read_to_end(SMALL)
    assert (header(message, "ce_id"), header(message, "ce_type")) == (str(event_id), EVENT)
    assert json.loads(message.value() or b"")["number"] == 1
    assert state(letter) == ("replayed", 1)


@ROWS
def test_it_is_open_again_when_the_broker_refuses_it_again(is_pruned: bool) -> None:
    _, letter = refused()
    if is_pruned:
        OutboxMessage.objects.all().delete()
    assert replayed(letter) == ReplayResult.APPLIED
    relay_everything()
    assert (state(letter), DeadLetter.objects.count()) == (("open", 1), 1)
    assert letter.last_error.startswith("KafkaException: ")


def test_a_refused_request_is_handled_by_its_own_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    body = request_body(7) | {"note": NOISE}
    with transaction.atomic():
        publish([Message(BOOKING_REQUESTED, body, event_id=UUID(body["requestId"]))])
    relay_everything()
    letter, seen = DeadLetter.objects.get(), []

    def replay(again: registry.ReplayedMessage) -> str:
        seen.append((again.letter_id, again.attempt, json.loads(again.message.value or b"")["requestId"]))
        return "booked: the seat of user 7"

    monkeypatch.setitem(vars(registry)["_rejected_replays"], BOOKING_REQUESTED, replay)
    assert (replayed(letter), seen) == (ReplayResult.APPLIED, [(letter.pk, 1, body["requestId"])])
    assert (Booking.objects.get().reason, state(letter)) == ("ERROR", ("replayed", 1))
