"""A topic that is deleted and made anew under a consumer is read from its beginning, by the same process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import pytest
from django.conf import settings

from common.processes.lifecycle import StopFlag
from devstack.processes import wait_until
from kafka_bridge.client import ensure_topics
from tests.stub_app.consumer_groups import BOOKINGS, BookingRequest
from tests.stub_app.events import request, winners
from tests.stub_app.routes import REQUESTS
from tests.support.kafka import committed_offsets, consume_everything, lose_topics, produce
from tests.support.rebalance import consume_in_background

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("topics")]

KEY = b"A"


@pytest.fixture(autouse=True)
def _asked_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kafka_bridge.consuming.topic_ids._ASK_SECONDS", 0.5)


@contextmanager
def consuming() -> Iterator[None]:
    stop = StopFlag()
    consumer = consume_in_background(BOOKINGS, stop)
    try:
        yield
    finally:
        stop.request()
        consumer.result(30)


def ask(user_ids: Sequence[int]) -> None:
    produce(REQUESTS, [request(user_id, seats=1000) for user_id in user_ids], key=KEY)


def make_anew() -> None:
    lose_topics(REQUESTS)
    ensure_topics(settings.KAFKA_ROUTES)


def wait_for(users: Sequence[int]) -> None:
    wait_until(lambda: winners() == list(users), 60, f"of the requests only {winners()} have a seat")


@pytest.mark.parametrize("number", [2, 8], ids=["with less than before", "with more than before"])
def test_a_running_consumer_reads_the_new_topic_from_its_beginning(number: int) -> None:
    with consuming():
        ask(range(5))
        wait_for(range(5))
        make_anew()
        ask(range(5, 5 + number))
        wait_for(range(5 + number))


def test_a_consumer_that_starts_later_does_not_go_on_from_the_offset_of_the_old_topic(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ask(range(5))
    with consuming():
        wait_for(range(5))
        # It does not notice: its last commit is one of the old topic.
        monkeypatch.setattr("kafka_bridge.consuming.topic_ids.TopicIds.has_changed", lambda ids: False)
        make_anew()
        wait_until(lambda: sum(committed_offsets(BOOKINGS.group_id, REQUESTS).values()) == 5, 60, "it commits nothing")
    ask(range(5, 13))
    consume_everything(BOOKINGS)
    assert winners() == list(range(13))


def test_a_topic_that_stays_is_not_read_again() -> None:
    ask(range(5))
    consume_everything(BOOKINGS)
    ask(range(5, 7))
    read: list[int] = []

    def handle(requests: Sequence[BookingRequest]) -> None:
        read.extend(one.user_id for one in requests)

    consume_everything(replace(BOOKINGS, handle=handle))
    assert read == [5, 6]
