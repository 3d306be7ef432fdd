"""A commit wakes the relay: a thread of the process that commits sends a NOTIFY, outside its transactions."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from pytest_django import DjangoCaptureOnCommitCallbacks

from common.processes.lifecycle import StopFlag
from devstack.processes import wait_until
from kafka_bridge.models import HeldMessage, OutboxMessage, RelayMember
from kafka_bridge.operating.operator_holds import held_retry, hold_messages, hold_release
from kafka_bridge.outbox.transports import row_for_transport
from kafka_bridge.outbox.wake import CHANNEL, HELD_CHANNEL, RelayWaker
from kafka_bridge.outbox.writing import Message, insert_new_rows, outbox_row
from kafka_bridge.relaying.wake_listener import WakeListener
from tests.stub_app.events import publish_keys, publish_numbers
from tests.stub_app.routes import NUMBER_DRAWN as EVENT
from tests.stub_app.routes import NUMBERS as TOPIC
from tests.support.kafka import read_topic
from tests.support.pooler import pgbouncer
from tests.support.resting_relay import PAUSE_SECONDS, RestingRelay, notify, resting_relay
from tests.support.threads import in_another_session

# Much shorter than the relay rests, and enough for a busy machine.
SOON_SECONDS = 20.0

_WAKERS = """
    SELECT pid FROM pg_stat_activity
    WHERE datname = current_database() AND application_name LIKE '% wake'
"""


@pytest.fixture
def resting(transactional_db: None, topics: str) -> Iterator[RestingRelay]:
    with resting_relay() as state:
        yield state


@contextmanager
def waking() -> Iterator[None]:
    """The thread of this process that wakes the relay."""
    waker = RelayWaker()
    waker.start()
    try:
        yield
    finally:
        waker.end()


@pytest.fixture
def waker(transactional_db: None) -> Iterator[None]:
    with waking():
        yield


def published(count: int) -> bool:
    return len(read_topic(TOPIC, count, timeout=SOON_SECONDS)) == count


def sessions_of_wakers() -> set[int]:
    with connection.cursor() as cursor:
        cursor.execute(_WAKERS)
        return {pid for (pid,) in cursor.fetchall()}


def end_session(pid: int) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])
        assert cursor.fetchone() == (True,)


@pytest.mark.usefixtures("waker")
def test_a_relay_that_rests_publishes_at_once_what_is_committed(resting: RestingRelay) -> None:
    for count in (1, 2, 3):
        publish_keys([count])
        assert published(count)


def test_without_a_thread_that_wakes_it_a_resting_relay_publishes_nothing(resting: RestingRelay) -> None:
    """The control of the others: no poll of the relay comes between."""
    publish_keys([1])
    assert resting.passes == 2
    notify()
    assert published(1)


@pytest.mark.usefixtures("resting")
def test_a_thread_whose_session_was_ended_loses_no_row_and_wakes_again() -> None:
    others = sessions_of_wakers()
    with waking():
        publish_keys([1])
        assert published(1)
        (session,) = sessions_of_wakers() - others
        end_session(session)
        for count in (2, 3):
            publish_keys([count])
            assert published(count)
        assert session not in sessions_of_wakers()


@pytest.mark.usefixtures("resting", "waker")
def test_a_relay_whose_session_was_ended_listens_on_its_next_one() -> None:
    end_session(RelayMember.objects.get().backend_pid)
    for count in (1, 2, 3):
        publish_keys([count])
        assert published(count)


@pytest.fixture
def looking_when_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Relays look at holds and held rows at their start, and then only when an operator has them do so."""
    monkeypatch.setattr("kafka_bridge.relaying.relay._HELD_SECONDS", 3600.0)


@pytest.mark.usefixtures("looking_when_told")
def test_a_relay_that_rests_obeys_a_hold_and_its_release_at_once(resting: RestingRelay) -> None:
    hold, _ = hold_messages(topic=TOPIC, key=None, actor="olga", reason="wrong price")
    wait_until(lambda: resting.passes > 2, SOON_SECONDS, "the relay does not look", 0.01)
    publish_keys([1])
    notify()
    wait_until(HeldMessage.objects.exists, SOON_SECONDS, "the row is not held", 0.01)
    hold_release(hold_id=hold.pk, actor="olga", reason="corrected")
    assert published(1)


@pytest.mark.usefixtures("looking_when_told")
def test_a_relay_that_rests_tries_held_rows_when_an_operator_asks_for_it(resting: RestingRelay) -> None:
    hold, _ = hold_messages(topic=TOPIC, key=None, actor="olga", reason="wrong price")
    wait_until(lambda: resting.passes > 2, SOON_SECONDS, "the relay does not look", 0.01)
    publish_keys([1])
    notify()
    wait_until(HeldMessage.objects.exists, SOON_SECONDS, "the row is not held", 0.01)
    # Not through the service, so that nothing wakes the relay.
    hold.delete()
    assert held_retry(topic=TOPIC, actor="olga", reason="it is released")
    assert published(1)


@contextmanager
def others_connect_to(port: int) -> Iterator[None]:
    """Threads that open a session from now on do so at ``port``; this one has its session."""
    connection.ensure_connection()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(connection.settings_dict, "PORT", str(port))
        yield


@pytest.mark.usefixtures("resting")
def test_the_thread_works_behind_a_pooler_in_transaction_mode(tmp_path: Path) -> None:
    with pgbouncer(tmp_path) as pooler, others_connect_to(pooler.port), waking():
        publish_keys([1])
        assert published(1)


@pytest.mark.usefixtures("resting")
def test_a_thread_that_cannot_connect_complains_once_and_wakes_as_soon_as_it_can(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with ExitStack() as stack:
        with socket.create_server(("127.0.0.1", 0)) as refusing, others_connect_to(refusing.getsockname()[1]):
            refusing.settimeout(SOON_SECONDS)
            stack.enter_context(waking())
            publish_keys([1])
            for _try in range(6):
                refusing.accept()[0].close()
        assert published(1)
    complaints = [record for record in caplog.records if record.name == "kafka_bridge.outbox.wake"]
    assert [record.levelno for record in complaints] == [logging.WARNING]


@pytest.mark.django_db(transaction=True)
def test_the_transaction_of_a_change_holds_no_statement_more() -> None:
    others = sessions_of_wakers()
    with waking():
        with CaptureQueriesContext(connection) as queries:
            publish_keys([1, 2])
        assert [query["sql"].split()[0] for query in queries] == ["BEGIN", "COPY", "COMMIT"]
        wait_until(lambda: sessions_of_wakers() > others, SOON_SECONDS, "the thread has no session of its own")


@pytest.mark.django_db
def test_only_committed_rows_for_the_relay_wake_it(
    django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks,
) -> None:
    row, other = (outbox_row(Message(EVENT, {"key": n})) for n in (1, 2))
    with django_capture_on_commit_callbacks() as rolled_back, transaction.atomic():
        publish_keys([1])
        transaction.set_rollback(True)
    with django_capture_on_commit_callbacks() as of_a_transport, transaction.atomic():
        insert_new_rows([row_for_transport(row, "pigeon")])
    with django_capture_on_commit_callbacks() as known_already, transaction.atomic():
        insert_new_rows([row])
    assert [rolled_back, of_a_transport, known_already] == [[], [], []]
    with django_capture_on_commit_callbacks() as committed, transaction.atomic():
        insert_new_rows([row, other])
    assert len(committed) == 1
    assert OutboxMessage.objects.count() == 2


@pytest.fixture
def session(transactional_db: None) -> Iterator[Any]:
    """Another program that listens."""
    with closing(connection.get_new_connection(connection.get_connection_params())) as session:
        session.autocommit = True
        session.cursor().execute(f"LISTEN {CHANNEL}")
        yield session


def heard(session: Any) -> int:
    session.poll()
    return len(session.notifies)


@pytest.mark.usefixtures("waker")
def test_a_burst_of_commits_sends_a_notify_at_its_begin_and_one_every_20_milliseconds(session: Any) -> None:
    began = time.monotonic()
    publish_numbers(range(300))
    wait_until(lambda: heard(session) > 1, SOON_SECONDS, "no NOTIFY came")
    assert heard(session) <= 2 + (time.monotonic() - began) / 0.02


@pytest.fixture
def listener(transactional_db: None) -> Iterator[WakeListener]:
    """It listens on the session of the test."""
    listener = WakeListener()
    connection.ensure_connection()
    listener.wait(PAUSE_SECONDS, StopFlag())
    yield listener
    listener.close()


def seconds_waited(listener: WakeListener, seconds: float, stop: StopFlag) -> float:
    began = time.monotonic()
    listener.wait(seconds, stop)
    return time.monotonic() - began


def test_a_notify_that_came_before_the_wait_ends_it_and_is_forgotten(listener: WakeListener) -> None:
    for _commit in range(3):
        in_another_session(notify).result(10)
    # The answer to any statement brings them in.
    assert not OutboxMessage.objects.exists()
    assert seconds_waited(listener, PAUSE_SECONDS, StopFlag()) < SOON_SECONDS
    assert seconds_waited(listener, 0.3, StopFlag()) >= 0.3


def test_a_request_to_stop_ends_the_wait(listener: WakeListener) -> None:
    stop = StopFlag()
    stopping = Timer(0.2, stop.request)
    stopping.start()
    assert seconds_waited(listener, PAUSE_SECONDS, stop) < SOON_SECONDS
    stopping.join()


def test_a_listener_that_is_closed_leaves_nothing_on_the_session(listener: WakeListener) -> None:
    def channels() -> list[tuple[str]]:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_listening_channels()")
            return list(cursor.fetchall())

    assert set(channels()) == {(CHANNEL,), (HELD_CHANNEL,)}
    listener.close()
    assert channels() == []
