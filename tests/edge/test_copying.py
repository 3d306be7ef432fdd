"""COPY of a batch stores the same values and raises the same errors as an INSERT."""

from __future__ import annotations

from functools import partial

import pytest
from django.db import DataError, IntegrityError, OperationalError, connection, transaction
from uuid_utils.compat import uuid7

from common.postgres import copying
from common.processes.outages import is_transient
from kafka_bridge.models import OutboxMessage
from kafka_bridge.outbox.writing import OutboxRow, insert_rows
from tests.support.threads import in_another_session

pytestmark = pytest.mark.django_db(transaction=True)

TEXTS = ["plain", "", "a\tb", "a\nb\r", "\\", r"\N", r"\.", "\"'{},", "쿠폰 🎟", "NULL"]
BYTES = [bytes(range(256)), b"", b"\\x41", b"\n\t\\N", None]


def row(**changes: object) -> OutboxRow:
    fields = OutboxRow(uuid7(), "type", "topic", b"key", b"{}", None, "traceparent")
    return fields._replace(**changes)  # type: ignore[arg-type]


def insert(*rows: OutboxRow) -> None:
    with transaction.atomic():
        insert_rows(rows)


def test_any_text_is_stored_as_it_is_and_in_order() -> None:
    insert(*(row(event_type=text) for text in TEXTS))
    assert list(OutboxMessage.objects.order_by("id").values_list("event_type", flat=True)) == TEXTS


def test_any_bytes_are_stored_as_they_are() -> None:
    insert(*(row(key=value, payload=value, headers=value) for value in BYTES))
    for name in ("key", "payload", "headers"):
        stored = OutboxMessage.objects.order_by("id").values_list(name, flat=True)
        assert [None if value is None else bytes(value) for value in stored] == BYTES


def test_a_row_of_another_transport_is_published_from_the_start() -> None:
    insert(row(), row(by_transport=True))
    by_relay, by_transport = OutboxMessage.objects.order_by("id")
    assert by_relay.published_at is None
    assert by_transport.published_at is not None


def test_a_row_that_exists_fails_the_transaction() -> None:
    first = row()
    insert(first)
    with pytest.raises(IntegrityError, match="event_id_key"):
        insert(row(), first)
    assert OutboxMessage.objects.count() == 1


@pytest.mark.parametrize("text", ["a\0b", "x" * 200])
def test_a_text_that_the_column_cannot_hold_is_a_data_error(text: str) -> None:
    with pytest.raises(DataError):
        insert(row(event_type=text))


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"), transaction.atomic():
        copying.copy_rows("kafka_bridge_outboxmessage", {"topic": ["a", "b"], "event_type": ["a"]})


def copy_in_a_killed_session() -> None:
    def kill(pid: int) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])

    with transaction.atomic():
        in_another_session(partial(kill, connection.connection.info.backend_pid)).result(20)
        insert_rows([row()])


def test_a_session_that_was_killed_is_an_outage() -> None:
    with pytest.raises(OperationalError) as caught:
        copy_in_a_killed_session()
    assert is_transient(caught.value)
