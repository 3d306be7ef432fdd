"""Positions: what is sent is not sent again, what is not visible yet is not forgotten, and no zombie moves them."""

from __future__ import annotations

import pytest
from django.db import connection, transaction

from common.processes.lifecycle import StopFlag
from kafka_bridge.models import SHARDS, OutboxMessage, RelayLease
from kafka_bridge.outbox.writing import Message, publish
from kafka_bridge.relaying.leases import Leases
from kafka_bridge.relaying.positions import LeaseLost
from kafka_bridge.relaying.relay import Relay
from tests.stub_app.events import publish_keys, publish_numbers
from tests.stub_app.routes import NUMBER_DRAWN, NUMBERS
from tests.support.kafka import read_to_end, relay_everything
from tests.support.threads import OpenTransaction

from .scenes import numbers, settle, take_over

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("topics")]


@pytest.fixture
def saving_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kafka_bridge.relaying.positions._SAVE_SECONDS", 0.0)
    monkeypatch.setattr("kafka_bridge.relaying.positions._SHARE_OF_TIME", 1e9)


def burn_ids(count: int) -> None:
    """Ids of rows whose transaction is rolled back."""
    with transaction.atomic():
        publish([Message(NUMBER_DRAWN, {"key": 1, "number": -1})])
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT nextval('kafka_bridge_outboxmessage_id_seq') FROM generate_series(1, %s)", [count - 1]
            )
        transaction.set_rollback(True)


def last_id() -> int:
    row = OutboxMessage.objects.order_by("-id").first()
    assert row is not None
    return row.id


@pytest.mark.usefixtures("observing_always")
def test_a_stopped_relay_leaves_nothing_to_repeat_and_no_row_is_changed() -> None:
    publish_numbers(range(20))
    rows = list(OutboxMessage.objects.order_by("id").values())
    some_relay = Relay(batch_size=7)
    settle(some_relay)
    settle(some_relay)
    some_relay.close()
    publish_numbers(range(20, 22))
    relay_everything()
    assert numbers(read_to_end(NUMBERS)) == list(range(22))
    assert list(OutboxMessage.objects.order_by("id").values())[:20] == rows
    assert set(RelayLease.objects.values_list("sent_through", flat=True)) == {last_id()}


@pytest.mark.usefixtures("observing_always", "saving_always")
def test_burnt_ids_do_not_hold_the_position() -> None:
    publish_numbers(range(1))
    burn_ids(500)
    publish_numbers(range(1, 2))
    some_relay = Relay()
    settle(some_relay)
    lease = RelayLease.objects.first()
    assert lease is not None
    assert (lease.position, lease.sent_through, lease.gaps) == (last_id(), last_id(), [])
    some_relay.close()


@pytest.mark.usefixtures("observing_always", "saving_always")
def test_beside_an_open_transaction_a_takeover_repeats_nothing_that_was_saved_and_loses_nothing() -> None:
    killed = Relay(batch_size=4)
    settle(killed)
    with OpenTransaction(lambda: publish([Message(NUMBER_DRAWN, {"key": 1, "number": 0})])) as late:
        publish_numbers(range(1, 30))
        for _ in range(12):
            killed.relay_batch(StopFlag())
        lease = RelayLease.objects.first()
        assert lease is not None
        first = lease.gaps[0][0]
        assert lease.gaps == [(first, first)]
        assert lease.position == first - 1
        take_over()
        heir = Relay()
        settle(heir)
        assert numbers(read_to_end(NUMBERS)) == list(range(1, 30))
        late.commit()
    settle(heir)
    assert numbers(read_to_end(NUMBERS)) == [*range(1, 30), 0]
    lease = RelayLease.objects.first()
    assert lease is not None
    assert (lease.position, lease.gaps) == (last_id(), [])
    heir.close()


def test_an_unsaved_portion_is_repeated_in_its_order_by_the_relay_that_takes_over() -> None:
    publish_numbers(range(5))
    killed = Relay()
    assert killed.relay_batch(StopFlag()) == 5
    publish_numbers(range(5, 10))
    assert killed.relay_batch(StopFlag()) == 5
    take_over()
    relay_everything()
    sent = numbers(read_to_end(NUMBERS))
    assert sent[:10] == list(range(10))
    assert list(dict.fromkeys(sent)) == list(range(10))


@pytest.mark.usefixtures("saving_always")
def test_a_relay_whose_shards_were_taken_sends_nothing_more_and_moves_no_position() -> None:
    publish_numbers(range(3))
    zombie = Relay()
    assert zombie.relay_batch(StopFlag()) == 3
    take_over()
    heir = Leases()
    assert len(heir.held()) == SHARDS
    before = list(RelayLease.objects.order_by("shard").values())
    publish_numbers(range(3, 6))
    with pytest.raises(LeaseLost):
        zombie.relay_batch(StopFlag())
    assert list(RelayLease.objects.order_by("shard").values()) == before


@pytest.mark.usefixtures("saving_always")
def test_what_is_in_memory_is_not_written_to_another_server() -> None:
    """As behind a proxy that survives a failover: the connection is there, and leads elsewhere."""
    publish_numbers(range(3))
    some_relay = Relay()
    assert some_relay.relay_batch(StopFlag()) == 3
    saved = RelayLease.objects.values("position", "sent_through").distinct().get()
    publish_numbers(range(3, 5))
    connection.close()
    with pytest.raises(LeaseLost):
        some_relay.relay_batch(StopFlag())
    assert RelayLease.objects.values("position", "sent_through").distinct().get() == saved
    some_relay.run(StopFlag(), until_idle=True)
    assert numbers(read_to_end(NUMBERS)) == [0, 1, 2, 3, 4, 3, 4]


@pytest.mark.usefixtures("observing_always", "saving_always", "renewing_always")
def test_relays_that_share_the_shards_send_each_row_once_and_their_gaps_are_no_rows_of_others() -> None:
    one, two = Relay(batch_size=50), Relay(batch_size=50)
    one.relay_batch(StopFlag())
    two.relay_batch(StopFlag())
    publish_keys(list(range(200)))
    for _ in range(12):
        one.relay_batch(StopFlag())
        two.relay_batch(StopFlag())
    assert len(read_to_end(NUMBERS)) == 200
    assert [lease.gaps for lease in RelayLease.objects.all()] == [[]] * SHARDS
    one.close()
    settle(two)
    publish_keys(list(range(10)))
    settle(two)
    assert len(read_to_end(NUMBERS)) == 210
    two.close()


@pytest.mark.usefixtures("observing_always", "saving_always", "renewing_always")
def test_a_shard_taken_over_from_a_relay_that_was_ahead_is_not_repeated() -> None:
    ahead, behind = Relay(), Relay(batch_size=1)
    for each in (ahead, behind, ahead, behind):
        each.relay_batch(StopFlag())
    publish_keys(list(range(100)))
    ahead.relay_batch(StopFlag())
    assert 0 < len(read_to_end(NUMBERS)) < 100
    ahead.close()
    while behind.relay_batch(StopFlag()):
        pass
    assert len(read_to_end(NUMBERS)) == 100
    behind.close()


@pytest.mark.usefixtures("saving_always", "renewing_always")
def test_a_relay_that_gets_the_same_shards_back_reads_what_another_has_sent_meanwhile() -> None:
    publish_numbers(range(2))
    stopped = Relay()
    for _ in range(2):
        stopped.relay_batch(StopFlag())
    take_over()
    heir = Relay()
    publish_numbers(range(2, 5))
    settle(heir)
    heir.close()
    settle(stopped)
    stopped.close()
    assert numbers(read_to_end(NUMBERS)) == [0, 1, 2, 3, 4]
