"""Order per key, by the first copy of each event; ``test_without_the_guards`` has what the guards prevent."""

import re

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from common.processes.lifecycle import StopFlag
from devstack.processes import wait_until
from kafka_bridge.models import SHARDS, OutboxMessage
from kafka_bridge.relaying.leases import Leases
from kafka_bridge.relaying.relay import Relay
from tests.stub_app.events import publish_keys, publish_numbers
from tests.stub_app.routes import NUMBER_DRAWN as EVENT
from tests.stub_app.routes import NUMBERS as TOPIC
from tests.support.kafka import header, read_to_end, read_topic, relay_everything
from tests.support.published import unpublished_rows
from tests.support.threads import in_another_session

from .scenes import (
    first_copies,
    numbers,
    publish_late_and_early,
    relay_what_is_there,
    sent_around_a_hanging_relay,
    settle,
)

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("topics")]


def test_events_of_a_key_arrive_in_order_with_their_cloud_events_headers() -> None:
    publish_numbers(range(50))
    assert relay_everything(batch_size=7) == 50
    messages = read_topic(TOPIC, 50)
    assert numbers(messages) == list(range(50))
    row = OutboxMessage.objects.order_by("id").first()
    assert row is not None
    assert header(messages[0], "ce_id") == str(row.event_id)
    assert header(messages[0], "ce_type") == EVENT
    assert header(messages[0], "ce_source") == "/stub"
    assert header(messages[0], "ce_specversion") == "1.0"
    assert header(messages[0], "content-type") == "application/json"
    assert messages[0].key() == b"1"
    assert not unpublished_rows().exists()


@pytest.mark.usefixtures("every_relay_holds_everything")
def test_two_relays_on_the_same_rows_only_add_later_copies() -> None:
    publish_numbers(range(300))
    beside = in_another_session(lambda: relay_what_is_there(batch_size=5))
    mine = relay_what_is_there(batch_size=11)
    sent = mine + beside.result(30)
    assert sent >= 300
    assert first_copies(read_topic(TOPIC, sent)) == list(range(300))


@pytest.mark.usefixtures("every_relay_holds_everything")
def test_a_relay_that_hangs_with_rows_in_hand_does_not_let_others_overtake_them() -> None:
    publish_numbers(range(10))
    assert sent_around_a_hanging_relay() == list(range(10))


@pytest.mark.usefixtures("observing_always")
def test_a_row_that_is_committed_late_is_not_skipped() -> None:
    some_relay = Relay()
    publish_late_and_early(some_relay)
    some_relay.close()
    assert numbers(read_topic(TOPIC, 2)) == [1, 0]


def end_session(backend: tuple[int]) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s, 10000)", backend)


def reads_above(queries: CaptureQueriesContext) -> list[int]:
    """The ids that the relay's reads began above, in their order."""
    found = (re.search(r"WHERE id > (\d+) AND published_at IS NULL", query["sql"]) for query in queries)
    return [int(match.group(1)) for match in found if match]


@pytest.mark.usefixtures("observing_always")
def test_the_relay_reads_above_the_last_row_sent_and_from_the_saved_position_after_a_lost_connection() -> None:
    some_relay = Relay()
    publish_keys([1, 2, 3])
    settle(some_relay)
    last = OutboxMessage.objects.order_by("id").last()
    assert last is not None
    with CaptureQueriesContext(connection) as queries:
        some_relay.relay_batch(StopFlag())
    assert reads_above(queries) == [last.id]

    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        backend = cursor.fetchone()
    with CaptureQueriesContext(connection) as queries:
        in_another_session(lambda: end_session(backend)).result(10)
        some_relay.run(StopFlag(), until_idle=True)
    assert set(reads_above(queries)) == {last.id}
    assert len(read_to_end(TOPIC)) == 3


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
