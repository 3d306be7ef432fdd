"""Negative controls: with a guard taken away, the failure that it prevents does happen.

The control of the producer's endless timeout needs a broker of its own, see ``test_a_broker_that_is_away``.
"""

from __future__ import annotations

from collections.abc import Collection
from uuid import UUID

import pytest
from confluent_kafka import Producer
from django.db import IntegrityError
from pytest_django import Settings

from kafka_bridge.consuming.consumer import GroupConsumer
from kafka_bridge.outbox import settled_mark
from kafka_bridge.relaying import reading
from kafka_bridge.relaying.relay import Relay
from tests.stub_app import consumer_groups
from tests.stub_app.consumer_groups import BOOKINGS
from tests.stub_app.events import publish_numbers, request, winners
from tests.stub_app.routes import NUMBERS, REQUESTS
from tests.support.kafka import consume_everything, produce, read_to_end
from tests.support.rebalance import SOON_EXPELLED, Rebalance

from .scenes import (
    commit_an_end_while_another_partition_retries,
    lag,
    numbers,
    publish_late_and_early,
    sent_around_a_hanging_relay,
)

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("topics")]


@pytest.mark.usefixtures("every_relay_holds_everything")
def test_skipping_rows_that_another_relay_has_locked_would_reorder_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = "ORDER BY id LIMIT %(limit)s)"
    read_sql = reading.read_sql

    def read_unlocked(*, has_gaps: bool, holds_all: bool) -> str:
        query = read_sql(has_gaps=has_gaps, holds_all=holds_all)
        return query if has_gaps else query.replace(limit, f"{limit[:-1]} FOR UPDATE SKIP LOCKED)")

    monkeypatch.setattr(reading, "read_sql", read_unlocked)
    publish_numbers(range(10))
    assert sent_around_a_hanging_relay() == [5, 6, 7, 8, 9, 0, 1, 2, 3, 4]


@pytest.mark.usefixtures("observing_always")
def test_a_settled_mark_that_did_not_wait_for_open_transactions_would_skip_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settled_mark, "_INSERTERS", "SELECT NULL WHERE false")
    some_relay = Relay()
    publish_late_and_early(some_relay)
    some_relay.close()
    assert numbers(read_to_end(NUMBERS)) == [1]


def test_if_what_is_in_hand_did_not_count_messages_would_be_lost(
    others: Producer, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    settings.CONSUMER_BACKOFF_SECONDS = 0.05
    with monkeypatch.context() as patched:
        patched.setattr(GroupConsumer, "_has_buffered", lambda *args: False)
        assert commit_an_end_while_another_partition_retries(others) == [0, 0, 0, 2, 3]
    consume_everything(BOOKINGS)
    assert (winners(), lag()) == ([], 0)


def test_a_handler_that_does_not_know_what_it_has_decided_would_decide_again_after_a_rebalance(
    monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    def forget(request_ids: Collection[UUID]) -> set[UUID]:
        return set()

    monkeypatch.setattr(consumer_groups, "decided_requests", forget)
    settings.CONSUMER_BACKOFF_SECONDS = 0.05
    settings.KAFKA_CONSUMER_CONFIG = SOON_EXPELLED
    produce(REQUESTS, [request(user_id, seats=20) for user_id in (1, 2, 3)])
    rebalance = Rebalance(BOOKINGS)
    rebalance.run()
    assert isinstance(rebalance.second_try[0], IntegrityError)
