"""Whatever others put on a topic: a message that cannot be read becomes a dead letter and stops nothing else."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import AlterConfigOpType, ConfigEntry, ConfigResource
from confluent_kafka.admin._resource import ResourceType
from pytest_django import Settings
from uuid_utils.compat import uuid7

from common.processes.lifecycle import StopFlag
from devstack import wait_until
from kafka_bridge.client import group_lag
from kafka_bridge.cloudevents import decode_headers
from kafka_bridge.consuming.batch import HANDLER_FAILURES_IN_A_ROW, BatchHandler
from kafka_bridge.consuming.topic_reader import read_history
from kafka_bridge.errors import PoisonLimitExceeded
from kafka_bridge.models import DeadLetter
from kafka_bridge.registry import ReceivedMessage, prefixed
from tests.stub_app.consumer_groups import BOOKINGS
from tests.stub_app.events import answers, request, requests, winners
from tests.stub_app.models import Booking
from tests.stub_app.routes import BOOKING_DECIDED, BOOKING_REQUESTED, NUMBERS
from tests.stub_app.routes import REQUESTS as TOPIC
from tests.support.kafka import consume_everything, header, produce, read_to_end, relay_everything
from tests.support.librdkafka import RawRecord, produce_raw
from tests.support.published import unpublished_rows

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("topics")]

BAD_NAME = b"\xff"
LATEST = 2**63 - 1


@pytest.fixture(autouse=True)
def _short_pauses(settings: Settings) -> None:
    settings.CONSUMER_BACKOFF_SECONDS = 0.01


def lag() -> int:
    return group_lag(BOOKINGS.group_id, BOOKINGS.topics)


def test_a_header_name_that_is_not_utf_8_makes_a_dead_letter_and_the_rest_goes_on() -> None:
    request_id = uuid7()
    value = request(2, requestId=str(request_id))
    produce(TOPIC, [request(1)])
    headers = [(b"ce_id", str(request_id).encode()), (BAD_NAME, b"\x00\xfe"), (b"none", None), (b"\xfe", None)]
    produce_raw(TOPIC, [RawRecord(value, headers=headers)])
    produce(TOPIC, [request(3)])

    consume_everything(BOOKINGS)

    assert (answers(), lag()) == ({1: "SUCCESS", 2: "FAILED", 3: "SUCCESS"}, 0)
    assert Booking.objects.get(request_id=request_id).reason == "ERROR"
    letter = DeadLetter.objects.get()
    assert (bytes(letter.key or b""), bytes(letter.payload or b""), letter.event_id) == (b"K", value, request_id)
    assert letter.error_message == "the name of a header is not UTF-8"
    assert decode_headers(bytes(letter.headers)) == (
        ("ce_id", str(request_id).encode()),
        ("x-unreadable-name", b"\x00\xfe"),
        ("none", None),
        ("x-unreadable-name", None),
    )

    relay_everything()
    (copy,) = read_to_end(f"{TOPIC}.DLT")
    assert (copy.key(), copy.value(), header(copy, "x-original-offset")) == (b"K", value, "1")
    assert ("x-unreadable-name", b"\x00\xfe") in (copy.headers() or [])


def test_each_of_many_such_messages_becomes_a_dead_letter() -> None:
    """Python runs a call it has seen often by a shortcut, which lets the error come up somewhere else."""
    bad, good = range(1, 301), range(301, 601)
    records = []
    for one, other in zip(bad, good, strict=True):
        records.append(RawRecord(request(one, seats=1000), headers=[(BAD_NAME, b"x")]))
        records.append(RawRecord(request(other, seats=1000)))
    produce_raw(TOPIC, records)
    consume_everything(BOOKINGS)
    assert answers() == dict.fromkeys(bad, "FAILED") | dict.fromkeys(good, "SUCCESS")
    assert DeadLetter.objects.count() == len(bad)


def test_a_request_that_only_its_header_names_is_answered_too() -> None:
    request_id = uuid7()
    headers = [(BAD_NAME, b"x"), (b"ce_id", str(request_id).encode())]
    produce_raw(TOPIC, [RawRecord(request(1, requestId=...), headers=headers)])
    consume_everything(BOOKINGS)
    assert Booking.objects.get().request_id == request_id


def test_a_message_of_another_type_on_the_topic_is_no_dead_letter_of_the_group(settings: Settings) -> None:
    routes = dict(settings.KAFKA_ROUTES)
    routes[BOOKING_DECIDED] = replace(routes[BOOKING_DECIDED], topic=TOPIC)
    settings.KAFKA_ROUTES = routes
    produce_raw(TOPIC, [RawRecord(b"{}", headers=[(BAD_NAME, b"x"), (b"ce_type", BOOKING_DECIDED.encode())])])
    consume_everything(BOOKINGS)
    assert (DeadLetter.objects.count(), lag()) == (0, 0)


def test_the_history_of_a_topic_is_read_past_such_a_message() -> None:
    values = [request(user_id) for user_id in (1, 2, 3)]
    produce_raw(TOPIC, [RawRecord(value, headers=[(BAD_NAME, b"x")] * (value == values[1])) for value in values])
    consume_everything(BOOKINGS)
    assert [message.value for message in read_history([TOPIC], StopFlag())] == values


@pytest.fixture
def any_timestamp(topics: str, settings: Settings) -> None:
    """The broker takes timestamps of all times on the request topic."""
    other = NUMBERS
    entry = ConfigEntry("message.timestamp.after.max.ms", str(LATEST), incremental_operation=AlterConfigOpType.SET)
    admin = AdminClient({"bootstrap.servers": settings.KAFKA_BOOTSTRAP_SERVERS})
    changes = [
        ConfigResource(ResourceType.TOPIC, prefixed(topic), incremental_configs=[entry]) for topic in (TOPIC, other)
    ]
    for future in admin.incremental_alter_configs(changes).values():
        future.result()

    def is_in_effect() -> bool:
        with suppress(KafkaException):
            produce_raw(other, [RawRecord(b"", timestamp=LATEST)])
            return True
        return False

    wait_until(is_in_effect, 30, "the broker refuses the timestamp")


TYPE = (b"ce_type", BOOKING_REQUESTED.encode())
TRACEPARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

READABLE: dict[str, dict[str, Any]] = {
    "an empty header name": {"headers": [(b"", b"x"), TYPE]},
    "NUL in a header name": {"headers": [(b"a\0b", b"x"), TYPE]},
    "a header without a value": {"headers": [(b"none", None), (b"ce_id", None), (b"ce_type", None)]},
    "an id that is none": {"headers": [(b"ce_id", b"\xff\0"), TYPE]},
    "a trace that is not ASCII": {"headers": [(b"traceparent", TRACEPARENT[:-1] + b"\xff"), TYPE]},
    "a trace in the digits of another script": {"headers": [(b"traceparent", "\u0660".encode() * 27)]},
    "the same header twice": {"headers": [TYPE, TYPE]},
    "a thousand headers": {"headers": [(b"h%d" % number, b"x") for number in range(1000)]},
    "a key that is not UTF-8": {"key": b"\xff\0"},
    "no key": {"key": None},
    "a timestamp before 1970": {"timestamp": -62_135_596_800_001},
    "no timestamp": {"timestamp": -1},
    "a timestamp after the last year": {"timestamp": LATEST},
}


@pytest.mark.usefixtures("any_timestamp")
@pytest.mark.parametrize("kind", READABLE)
def test_what_is_odd_about_a_message_and_does_not_matter_stops_no_request(kind: str) -> None:
    # The second is a dead letter with all that is odd, which has to get to its topic.
    produce_raw(TOPIC, [RawRecord(value, **READABLE[kind]) for value in (request(1), b"{")])
    consume_everything(BOOKINGS)
    assert (answers()[1], winners(), lag()) == ("SUCCESS", [1], 0)
    letter = DeadLetter.objects.get()
    relay_everything()
    (copy,) = read_to_end(f"{TOPIC}.DLT")
    assert (copy.value(), copy.key()) == (b"{", READABLE[kind].get("key", b"K"))
    assert tuple(copy.headers() or ())[:-6] == decode_headers(bytes(letter.headers))
    assert not unpublished_rows().exists()


POISON: dict[str, dict[str, Any]] = {
    "a type that is not UTF-8": {"headers": [(b"ce_type", b"\xff")]},
    "a type with NUL": {"headers": [(b"ce_type", TYPE[1] + b"\0")]},
    "an empty type": {"headers": [(b"ce_type", b"")]},
    "a type without end": {"headers": [(b"ce_type", b"x" * 100_000)]},
    "a type that is cut within a letter": {"headers": [(b"ce_type", b"x" * 99 + "é".encode())]},
    "a bad name before the type": {"headers": [(BAD_NAME, b"x"), TYPE]},
    "a surrogate in a header name": {"headers": [(b"\xed\xa0\x80", b"x"), TYPE]},
    "a name that is cut within a letter": {"headers": [("é".encode()[:1], b"x"), TYPE]},
}


@pytest.mark.parametrize("kind", POISON)
def test_what_is_bad_about_a_message_ends_its_request_and_no_other(kind: str) -> None:
    produce_raw(TOPIC, [RawRecord(request(1), **POISON[kind]), RawRecord(request(2))])
    consume_everything(BOOKINGS)
    assert (answers(), lag()) == ({1: "FAILED", 2: "SUCCESS"}, 0)
    relay_everything()
    (copy,) = read_to_end(f"{TOPIC}.DLT")
    assert header(copy, "x-error-class") in ("PoisonMessage", "UnicodeDecodeError")


@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00+09:00", "9999-12-31T23:59:59-05:00"])
def test_requests_of_a_time_that_no_calendar_has_are_poison_however_many(moment: str) -> None:
    produce(TOPIC, [request(user_id, requestedAt=moment) for user_id in range(1, 31)])
    produce(TOPIC, [request(31)])
    consume_everything(BOOKINGS)
    assert answers() == dict.fromkeys(range(1, 31), "FAILED") | {31: "SUCCESS"}
    assert set(DeadLetter.objects.values_list("error_class", flat=True)) == {"PoisonMessage"}


def test_a_decoder_that_trips_over_one_message_stops_no_other() -> None:
    def decode(message: ReceivedMessage) -> Any:
        decoded = BOOKINGS.decode(message)
        if decoded.user_id == 2:
            raise KeyError("a fault of ours")
        return decoded

    produce(TOPIC, [request(user_id) for user_id in (1, 2, 3)])
    consume_everything(replace(BOOKINGS, decode=decode))
    assert (answers(), lag()) == ({1: "SUCCESS", 2: "FAILED", 3: "SUCCESS"}, 0)
    assert DeadLetter.objects.get().error_class == "KeyError"


def test_a_decoder_that_trips_over_every_message_holds_the_partition_back() -> None:
    def decode(message: ReceivedMessage) -> Any:
        raise KeyError("a fault of ours")

    batch = requests(range(1, 51), seats=100)
    for runs in (1, 2):
        with pytest.raises(PoisonLimitExceeded, match="a fault of ours"):
            BatchHandler(replace(BOOKINGS, decode=decode)).handle(batch, StopFlag())
        assert DeadLetter.objects.count() == runs * HANDLER_FAILURES_IN_A_ROW
