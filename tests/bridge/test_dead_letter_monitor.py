"""The group ``dead-letters`` finds what others put on dead-letter topics, once, and opens the alert of dead letters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import timedelta

import pytest
from confluent_kafka import Producer
from django.db import connection
from prometheus_client import REGISTRY
from pytest_django import Settings

from common.postgres.clock import database_time
from common.processes.lifecycle import StopFlag
from kafka_bridge.client import group_lag
from kafka_bridge.consuming import dead_letter_monitor
from kafka_bridge.consuming.batch import BatchHandler
from kafka_bridge.consuming.dead_letter_monitor import DEAD_LETTERS
from kafka_bridge.models import Alert, DeadLetter
from kafka_bridge.registry import prefixed
from tests.stub_app import routes
from tests.stub_app.consumer_groups import BOOKINGS
from tests.stub_app.events import message, request_body
from tests.stub_app.routes import NUMBERS, REQUESTS, RESULTS
from tests.support.kafka import consume_everything, produce, read_topic, relay_everything

pytestmark = pytest.mark.django_db(transaction=True)

DLT = f"{REQUESTS}.DLT"
# Of a copy of a dead letter that has no row.
ORIGIN = {
    "x-original-topic": REQUESTS.encode(),
    "x-original-partition": b"0",
    "x-original-offset": b"7",
    "x-consumer-group": b"stub-booking-group",
}


@pytest.fixture(autouse=True)
def _group(_routes_of_the_stub_app: None, settings: Settings) -> None:
    settings.KAFKA_GROUPS = {**routes.GROUPS, "dead-letters": "stub-dead-letter-group"}


def foreign() -> Iterable[DeadLetter]:
    return DeadLetter.objects.filter(consumer_group="foreign").order_by("topic", "offset")


def passed_over() -> float:
    return REGISTRY.get_sample_value("consumer_passed_over_total", {"group": "dead-letters"}) or 0.0


def dead_letter_of_ours(offset: int = 0) -> None:
    """A booking request that cannot be read: a row, and its copy on the dead-letter topic."""
    body = request_body(1, userId="not a number")
    BatchHandler(BOOKINGS).handle([message(body, offset=offset)], StopFlag())
    relay_everything()


def read_again_from_the_beginning(settings: Settings) -> None:
    settings.KAFKA_GROUPS = {**settings.KAFKA_GROUPS, "dead-letters": "stub-another-group"}
    consume_everything(DEAD_LETTERS)


def test_the_copy_of_a_dead_letter_of_ours_is_not_foreign(topics: str) -> None:
    dead_letter_of_ours()
    assert len(read_topic(DLT, 1)) == 1
    consume_everything(DEAD_LETTERS)
    assert [row.consumer_group for row in DeadLetter.objects.all()] == ["bookings"]


def test_the_copy_is_known_after_the_id_of_its_group_was_changed(topics: str, settings: Settings) -> None:
    dead_letter_of_ours()
    settings.KAFKA_GROUPS = {**settings.KAFKA_GROUPS, "bookings": "stub-renamed-group"}
    consume_everything(DEAD_LETTERS)
    assert not foreign()


def test_the_copy_is_known_while_its_group_shares_an_id(topics: str, settings: Settings) -> None:
    # The last of those with the id is another.
    settings.KAFKA_GROUPS = {**settings.KAFKA_GROUPS, "notices": settings.KAFKA_GROUPS["bookings"]}
    assert list(settings.KAFKA_GROUPS).index("bookings") < list(settings.KAFKA_GROUPS).index("notices")
    dead_letter_of_ours()
    consume_everything(DEAD_LETTERS)
    assert not foreign()


def test_a_message_of_others_becomes_one_row_however_often_it_is_read(topics: str, settings: Settings) -> None:
    produce(DLT, [b"\xffnot ours"], headers={"x-error-class": b"java.lang.Exception", "x-error-message": b"no \0 luck"})
    consume_everything(DEAD_LETTERS)
    (row,) = foreign()
    assert (row.topic, row.partition, row.offset, bytes(row.payload or b"")) == (DLT, 0, 0, b"\xffnot ours")
    assert row.error_class == "ForeignMessage"
    assert "java.lang.Exception: no \\0 luck" in row.error_message
    read_again_from_the_beginning(settings)
    assert [again.pk for again in foreign()] == [row.pk]


NO_ROW_OF_OURS = [
    ORIGIN,
    {**ORIGIN, "x-original-offset": b"0", "x-consumer-group": b"stub-notice-group"},
    {**ORIGIN, "x-original-offset": b"0", "x-original-partition": b"1"},
    {**ORIGIN, "x-original-topic": b"a\0b"},
    {**ORIGIN, "x-original-topic": b"\xff"},
    {**ORIGIN, "x-original-topic": b'{"a",\\b}'},
    {**ORIGIN, "x-original-partition": b"one"},
    {**ORIGIN, "x-original-partition": b"9" * 30},
    {**ORIGIN, "x-original-offset": b"9" * 5000},
    {**ORIGIN, "x-original-offset": b"1", "x-consumer-group": b"\0"},
]


def test_headers_that_name_no_row_make_a_message_foreign(topics: str) -> None:
    DeadLetter.objects.create(
        consumer_group="bookings", topic=REQUESTS, partition=0, offset=0, message_timestamp=1,
        event_type="", headers=b"[]",
    )  # fmt: skip
    for headers in (*NO_ROW_OF_OURS, {**ORIGIN, "x-original-offset": b"0"}):
        named = {name: topics.encode() + headers[name] for name in ("x-original-topic", "x-consumer-group")}
        produce(DLT, [b"{}"], headers={**headers, **named})
    produce(DLT, [b"{}"], headers={**ORIGIN, "x-original-topic": REQUESTS.encode(), "x-original-offset": b"0"})
    consume_everything(DEAD_LETTERS)
    # All but the last but one, whose row is there; the last names the topic of another prefix.
    assert [row.offset for row in foreign()] == [*range(len(NO_ROW_OF_OURS)), len(NO_ROW_OF_OURS) + 1]


def test_history_that_is_read_again_is_not_foreign(topics: str, settings: Settings) -> None:
    """After their retention the rows of closed dead letters are deleted; their copies stay on the topic for ever."""
    settings.DEAD_LETTER_RETENTION_DAYS = 7
    producer = Producer({"bootstrap.servers": settings.KAFKA_BOOTSTRAP_SERVERS})
    for days in (8, 6.5, 5.5):
        written_at = database_time() - timedelta(days=days)
        producer.produce(prefixed(DLT), value=str(days), timestamp=int(written_at.timestamp() * 1000))
    assert producer.flush(30) == 0
    consume_everything(DEAD_LETTERS)
    assert [bytes(row.payload or b"") for row in foreign()] == [b"5.5"]


@pytest.fixture
def one_dead_letter_topic_for_all(settings: Settings) -> None:
    settings.KAFKA_ROUTES = {
        name: replace(route, dead_letter_topic="stub-dead-letters") for name, route in routes.ROUTES.items()
    }


def test_one_dead_letter_topic_for_all_is_read_once(one_dead_letter_topic_for_all: None, topics: str) -> None:
    dead_letter_of_ours()
    produce("stub-dead-letters", [b"of others"])
    consume_everything(DEAD_LETTERS)
    assert DEAD_LETTERS.topics == [prefixed("stub-dead-letters")]
    assert [row.topic for row in foreign()] == ["stub-dead-letters"]


def test_every_dead_letter_topic_is_read(topics: str) -> None:
    for topic in (NUMBERS, REQUESTS, RESULTS):
        produce(f"{topic}.DLT", [b"of others"])
    consume_everything(DEAD_LETTERS)
    assert sorted(row.topic for row in foreign()) == sorted(f"{topic}.DLT" for topic in (NUMBERS, REQUESTS, RESULTS))


@pytest.fixture
def no_bomb_is_stored() -> Iterator[None]:
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE kafka_bridge_deadletter ADD CONSTRAINT no_bomb CHECK (payload <> 'bomb')")
    yield
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE kafka_bridge_deadletter DROP CONSTRAINT no_bomb")


def test_a_message_that_cannot_be_kept_is_counted_and_passed(
    topics: str, settings: Settings, no_bomb_is_stored: None
) -> None:
    settings.CONSUMER_BACKOFF_SECONDS = 0.01
    before = passed_over()
    produce(DLT, [b"first", b"bomb", b"last"])
    consume_everything(DEAD_LETTERS)
    assert [bytes(row.payload or b"") for row in foreign()] == [b"first", b"last"]
    assert DeadLetter.objects.count() == 2
    assert passed_over() == before + 1
    assert group_lag(DEAD_LETTERS.group_id, DEAD_LETTERS.topics) == 0


def test_a_flood_does_not_fill_the_table(
    topics: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(dead_letter_monitor, "MOST_FOREIGN", 3)
    before = passed_over()
    produce(DLT, [b"flood"] * 5)
    consume_everything(DEAD_LETTERS)
    assert [row.offset for row in foreign()] == [0, 1, 2]
    assert passed_over() == before + 2
    assert "2 foreign messages from stub-booking-requests.DLT[0]@3 on are not kept" in caplog.text
    # Those that are closed count no longer.
    DeadLetter.objects.update(closed_at=database_time())
    produce(DLT, [b"later"])
    consume_everything(DEAD_LETTERS)
    assert [row.offset for row in foreign()] == [0, 1, 2, 5]


def test_the_alert_opens_with_the_message_while_no_evaluator_runs(topics: str) -> None:
    produce(DLT, [b"of others"] * 10)
    consume_everything(DEAD_LETTERS)
    assert not Alert.objects.exists()
    dead_letter_of_ours()
    consume_everything(DEAD_LETTERS)
    assert [(alert.rule, alert.ended_at) for alert in Alert.objects.all()] == [("dead-letters", None)]
