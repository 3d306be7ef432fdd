"""Order per key, by the first copy of each event; each guard is proven by what happens without it."""

import json
from collections.abc import Sequence

import confluent_kafka
import pytest
from django.db import connection, transaction

from common.processes.lifecycle import StopFlag
from devstack.processes import wait_until
from kafka_bridge.models import SHARDS, OutboxMessage
from kafka_bridge.outbox import settled_mark
from kafka_bridge.outbox.writing import Message, publish
from kafka_bridge.relaying import relay
from kafka_bridge.relaying.leases import Leases
from kafka_bridge.relaying.relay import Relay
from tests.stub_app.events import publish_keys, publish_numbers
from tests.stub_app.routes import NUMBER_DRAWN as EVENT
from tests.stub_app.routes import NUMBERS as TOPIC
from tests.support.kafka import header, read_topic, relay_everything
from tests.support.threads import OpenTransaction, in_another_session

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("topics")]


@pytest.fixture
def every_relay_holds_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Relays without leases: both publish whatever is there."""
    monkeypatch.setattr(Leases, "held", lambda self: list(range(SHARDS)))
    monkeypatch.setattr(Leases, "holds_all", property(lambda self: True))


def numbers(messages: Sequence[confluent_kafka.Message]) -> list[int]:
    return [json.loads(message.value() or b"")["number"] for message in messages]


def first_copies(messages: Sequence[confluent_kafka.Message]) -> list[int]:
    return list(dict.fromkeys(numbers(messages)))


def test_events_of_a_key_arrive_in_order_with_their_cloud_events_headers() -> None:
    publish_numbers(range(50))
    assert relay_everything(batch_size=7) == 50
    messages = read_topic(TOPIC, 50)
    assert numbers(messages) == list(range(50))
    row = OutboxMessage.objects.order_by("id").first()
    assert row is not None
    assert header(messages[0], "ce_id") == str(row.event_id)
    assert header(messages[0], "ce_type") == EVENT
    assert header(messages[0], "ce_specversion") == "1.0"
    assert header(messages[0], "content-type") == "application/json"
    assert messages[0].key() == b"1"
    assert not OutboxMessage.objects.filter(published_at=None).exists()


@pytest.mark.usefixtures("every_relay_holds_everything")
def test_two_relays_on_the_same_rows_only_add_later_copies() -> None:
    publish_numbers(range(300))
    beside = in_another_session(lambda: relay_everything(batch_size=5))
    mine = relay_everything(batch_size=11)
    sent = mine + beside.result(30)
    assert sent >= 300
    assert first_copies(read_topic(TOPIC, sent)) == list(range(300))


@pytest.mark.usefixtures("every_relay_holds_everything")
def test_a_relay_that_hangs_with_rows_in_hand_does_not_let_others_overtake_them() -> None:
    publish_numbers(range(10))
    assert sent_around_a_hanging_relay() == list(range(10))


@pytest.mark.usefixtures("every_relay_holds_everything")
def test_skipping_rows_that_another_relay_has_locked_would_reorder_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "_SELECT_ALL", f"{relay._SELECT_ALL} FOR UPDATE SKIP LOCKED")
    publish_numbers(range(10))
    assert sent_around_a_hanging_relay() == [5, 6, 7, 8, 9, 0, 1, 2, 3, 4]


def sent_around_a_hanging_relay() -> list[int]:
    """The order of first copies when a relay locks the first five rows, hangs, and goes on later."""

    def hang() -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT id FROM kafka_bridge_outboxmessage ORDER BY id LIMIT 5 FOR UPDATE")

    with OpenTransaction(hang) as hanging:
        other = Relay()
        with transaction.atomic():
            rows = other._read(list(range(SHARDS)))
        assert other._publisher.send(rows, StopFlag())
        other.close()
        hanging.rollback()
    sent = len(rows) + relay_everything()
    return first_copies(read_topic(TOPIC, sent))


def publish_late_and_early(relay_between: Relay) -> None:
    """A row whose transaction is still open when a row with a higher id is committed and relayed."""
    with OpenTransaction(lambda: publish([Message(EVENT, {"key": 1, "number": 0})])) as late:
        publish_numbers(range(1, 2))
        settle(relay_between)
        late.commit()
    settle(relay_between)


def settle(some_relay: Relay) -> None:
    """A few passes, each of which may move the floor."""
    for _ in range(4):
        some_relay.relay_batch(StopFlag())


@pytest.fixture
def observing_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settled_mark, "_OBSERVE_SECONDS", 0.0)


@pytest.mark.usefixtures("observing_always")
def test_a_row_that_is_committed_late_is_not_skipped() -> None:
    some_relay = Relay()
    publish_late_and_early(some_relay)
    some_relay.close()
    assert numbers(read_topic(TOPIC, 2)) == [1, 0]


@pytest.mark.usefixtures("observing_always")
def test_a_floor_that_did_not_wait_for_open_transactions_would_skip_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settled_mark, "_INSERTERS", "SELECT NULL WHERE false")
    some_relay = Relay()
    publish_late_and_early(some_relay)
    some_relay.close()
    assert OutboxMessage.objects.filter(published_at=None).count() == 1


@pytest.mark.usefixtures("observing_always")
def test_the_floor_rises_to_the_last_published_row_and_falls_with_the_connection() -> None:
    some_relay = Relay()
    publish_keys([1, 2, 3])
    settle(some_relay)
    last = OutboxMessage.objects.order_by("id").last()
    assert last is not None
    assert some_relay._settled_mark.value() == last.id
    some_relay._recover(ConnectionError("the server went away"))
    assert some_relay._settled_mark.value() == 0
    some_relay.close()


@pytest.fixture
def renewing_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kafka_bridge.relaying.leases._RENEW_SECONDS", 0.0)


@pytest.mark.usefixtures("renewing_always")
def test_a_relay_whose_session_ended_loses_its_shards_at_once() -> None:
    dead = Leases()
    assert len(in_another_session(dead.held).result(10)) == SHARDS
    heir = Leases()
    wait_until(lambda: len(heir.held()) == SHARDS, 5, "the leases of a dead relay are not taken over")


@pytest.mark.usefixtures("renewing_always")
def test_relays_share_the_shards_and_take_over_what_another_gives_back() -> None:
    one, two = Leases(), Leases()
    assert len(one.held()) == SHARDS
    two.held()
    assert len(one.held()) == SHARDS // 2
    assert sorted([*one.held(), *two.held()]) == list(range(SHARDS))
    one.release()
    two.held()
    assert len(two.held()) == SHARDS
