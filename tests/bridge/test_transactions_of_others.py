"""Producers with transactions on our topics: their markers are no lag, and an open transaction is named."""

from __future__ import annotations

import pytest
from confluent_kafka import Producer
from prometheus_client import REGISTRY
from pytest_django import Settings

from common.processes.outages import ServiceUnavailable
from devstack import wait_until
from kafka_bridge.registry import prefixed
from tests.stub_app.consumer_groups import BOOKINGS
from tests.stub_app.events import request, winners
from tests.stub_app.routes import REQUESTS as TOPIC
from tests.support.kafka import (
    committed_offsets,
    consume_everything,
    produce,
)

from .scenes import KEY, OTHER_KEY, commit_an_end_while_another_partition_retries, lag, running, write

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("topics")]


@pytest.fixture(autouse=True)
def _short_pauses(settings: Settings) -> None:
    settings.CONSUMER_BACKOFF_SECONDS = 0.05


# Markers


def test_the_marker_of_a_committed_transaction_is_no_lag(others: Producer) -> None:
    write(others, request(1))
    others.commit_transaction(30)
    consume_everything(BOOKINGS)
    assert (winners(), lag()) == ([1], 0)


def test_an_aborted_transaction_is_no_lag_and_has_no_effect(others: Producer) -> None:
    write(others, request(1))
    others.abort_transaction(30)
    consume_everything(BOOKINGS)
    assert (winners(), lag()) == ([], 0)


def test_markers_behind_a_consumer_that_has_nothing_to_do_are_no_lag(others: Producer) -> None:
    with running(BOOKINGS):
        for user_id, end in enumerate(("commit_transaction", "abort_transaction", "commit_transaction"), 1):
            write(others, request(user_id))
            getattr(others, end)(30)
            wait_until(lambda: lag() == 0, 30, "the marker counts as lag")
            others.begin_transaction()
        offsets = committed_offsets(BOOKINGS.group_id, TOPIC)
        (partition,) = (number for number, offset in offsets.items() if offset == 6)
        labels = {"group": "bookings", "topic": prefixed(TOPIC), "partition": str(partition)}
        wait_until(
            lambda: REGISTRY.get_sample_value("consumer_lag_messages", labels) == 0, 30, "the gauge counts the marker"
        )
    assert winners() == [1, 3]


# What is in hand


def test_no_offset_moves_past_messages_in_hand(others: Producer) -> None:
    assert commit_an_end_while_another_partition_retries(others) == [0, 0, 0, 0, 3]
    consume_everything(BOOKINGS)
    assert (winners(), lag()) == ([1, 2], 0)


# An open transaction


def test_an_open_transaction_is_named_and_holds_back_what_is_behind_it(others: Producer) -> None:
    write(others, request(1))
    produce(TOPIC, [request(2)], key=KEY)
    consume_everything(BOOKINGS)
    name = f"an open transaction of another producer on topic {prefixed(TOPIC)} partition "
    with pytest.raises(ServiceUnavailable, match=name):
        lag()
    assert winners() == []

    others.abort_transaction(30)
    consume_everything(BOOKINGS)
    assert (winners(), lag()) == ([2], 0)


def test_what_can_be_read_before_an_open_transaction_is_lag(others: Producer) -> None:
    produce(TOPIC, [request(1)], key=OTHER_KEY)
    write(others, request(2))
    assert lag() == 1
    others.abort_transaction(30)
