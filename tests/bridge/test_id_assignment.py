"""What positions rely on: ids that rise, and a mark that moves; where not, it is named and nothing is lost."""

from __future__ import annotations

import re

import pytest
from django.core.management import CommandError
from django.db import connection, transaction

from kafka_bridge.models import Alert, OutboxMessage
from kafka_bridge.outbox.writing import Message, publish
from kafka_bridge.relaying.id_assignment import check_id_assignment
from kafka_bridge.relaying.relay import Relay
from tests.stub_app.events import publish_numbers
from tests.stub_app.routes import NUMBER_DRAWN, NUMBERS
from tests.support.kafka import read_to_end, relay_everything
from tests.support.threads import OpenTransaction, in_another_session

from .scenes import numbers, settle

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("topics")]

SEQUENCE = "kafka_bridge_outboxmessage_id_seq"


def execute(statement: str, *values: int) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement, values)


def ids() -> list[int]:
    return list(OutboxMessage.objects.order_by("id").values_list("id", flat=True))


@pytest.mark.usefixtures("observing_always")
def test_rows_under_a_sequence_that_was_set_back_are_sent_and_the_sequence_is_set_above() -> None:
    publish_numbers(range(10))
    relay_everything()
    before = ids()
    # As after a restore of some tables only: the last rows are gone, and their ids are assigned again.
    OutboxMessage.objects.filter(id__in=before[5:]).delete()
    execute(f"SELECT setval('{SEQUENCE}', %s)", before[4])
    publish_numbers(range(10, 13))
    relay_everything()
    publish_numbers(range(13, 15))
    relay_everything()
    sent = numbers(read_to_end(NUMBERS))
    assert list(dict.fromkeys(sent)) == list(range(15))
    assert ids()[-2] > before[-1]
    alert = Alert.objects.get(rule="outbox-sequence")
    assert f"ids up to {before[-1]} were assigned" in alert.summary


@pytest.mark.usefixtures("observing_always")
def test_a_sequence_set_back_under_a_running_relay_is_noticed() -> None:
    publish_numbers(range(10))
    some_relay = Relay()
    settle(some_relay)
    before = ids()
    OutboxMessage.objects.filter(id__in=before[5:]).delete()
    execute(f"SELECT setval('{SEQUENCE}', %s)", before[4])
    publish_numbers(range(10, 12))
    settle(some_relay)
    some_relay.close()
    relay_everything()
    assert set(numbers(read_to_end(NUMBERS))) == set(range(12))


@pytest.mark.usefixtures("observing_always")
def test_rows_under_a_sequence_that_was_set_back_a_little_and_has_climbed_past_again_are_sent() -> None:
    publish_numbers(range(3))
    some_relay = Relay()
    settle(some_relay)
    execute(f"SELECT setval('{SEQUENCE}', %s)", ids()[-1] + 100)
    settle(some_relay)
    execute(f"SELECT setval('{SEQUENCE}', %s)", ids()[-1] + 50)
    publish_numbers(range(3, 103))
    settle(some_relay)
    some_relay.close()
    relay_everything()
    assert set(numbers(read_to_end(NUMBERS))) == set(range(103))
    assert "rows are sent again" in Alert.objects.get(rule="outbox-sequence").summary


@pytest.mark.usefixtures("observing_always")
def test_a_sequence_set_ahead_is_one_gap_that_is_forgotten() -> None:
    publish_numbers(range(2))
    some_relay = Relay()
    settle(some_relay)
    execute(f"SELECT setval('{SEQUENCE}', %s)", ids()[-1] + 1_000_000)
    publish_numbers(range(2, 4))
    settle(some_relay)
    some_relay.close()
    assert numbers(read_to_end(NUMBERS)) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("change", "undo", "complaint"),
    [
        (f"ALTER SEQUENCE {SEQUENCE} CACHE 10", f"ALTER SEQUENCE {SEQUENCE} CACHE 1", "has CACHE 10"),
        (f"ALTER SEQUENCE {SEQUENCE} INCREMENT 2", f"ALTER SEQUENCE {SEQUENCE} INCREMENT 1", "has INCREMENT 2"),
        (f"ALTER SEQUENCE {SEQUENCE} CYCLE", f"ALTER SEQUENCE {SEQUENCE} NO CYCLE", "cycles"),
    ],
)
def test_a_sequence_that_may_give_ids_out_of_order_stops_the_start(change: str, undo: str, complaint: str) -> None:
    check_id_assignment()
    execute(change)
    try:
        with pytest.raises(CommandError, match=re.escape(complaint)):
            check_id_assignment()
    finally:
        execute(undo)


@pytest.mark.usefixtures("observing_always")
def test_a_transaction_that_keeps_the_mark_is_named_until_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kafka_bridge.relaying.id_assignment._STANDS_TOO_LONG", 0.001)
    some_relay = Relay()
    with OpenTransaction(lambda: publish([Message(NUMBER_DRAWN, {"key": 1, "number": 0})])) as late:
        settle(some_relay)
        summary = Alert.objects.get(rule="outbox-settled-mark", ended_at=None).summary
        assert re.search(r"session \d+ of \w+ \(.+\), idle in transaction since", summary)
        late.commit()
    settle(some_relay)
    assert not Alert.objects.filter(ended_at=None).exists()
    some_relay.close()


@pytest.mark.usefixtures("observing_always")
def test_a_prepared_transaction_that_keeps_the_mark_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kafka_bridge.relaying.id_assignment._STANDS_TOO_LONG", 0.001)
    some_relay = Relay()

    def prepare() -> None:
        with transaction.atomic():
            publish([Message(NUMBER_DRAWN, {"key": 1, "number": 0})])
            execute("PREPARE TRANSACTION 'forgotten'")

    in_another_session(prepare).result(10)
    try:
        settle(some_relay)
        assert Alert.objects.get(ended_at=None).summary.endswith(": prepared transaction forgotten")
    finally:
        execute("COMMIT PREPARED 'forgotten'")
    settle(some_relay)
    assert not Alert.objects.filter(ended_at=None).exists()
    assert numbers(read_to_end(NUMBERS)) == [0]
    some_relay.close()
