"""Writing the outbox: the only way an event leaves the service."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
import uuid_utils
from django.conf import settings
from django.db import connection, transaction

from common.postgres import arrays, copying
from common.trace_context import new_traceparent

from ..cloudevents import encode_body
from ..errors import PayloadTooLarge, PublishOutsideTransaction
from ..models import SHARDS, OutboxMessage
from ..routes import Route
from .wake import wake_relay_on_commit

# Topics accept 1 MiB by default; the difference leaves room for the headers and the record batch.
MAX_PAYLOAD_BYTES = 900_000


def new_event_id() -> UUID:
    """Return a UUIDv7: new ids are adjacent in the index, whereas random ids cost many times the WAL."""
    # The library's own conversion to UUID takes twice as long, and a batch needs thousands.
    return msgspec.convert(uuid_utils.uuid7().bytes, UUID)


class Message(msgspec.Struct, frozen=True, gc=False):
    """An event to publish. ``body``, a mapping or a Struct, must have the field that its route names as key.

    An empty ``traceparent`` starts a new trace.
    """

    event_type: str
    body: Mapping[str, Any] | msgspec.Struct
    event_id: UUID = msgspec.field(default_factory=new_event_id)
    traceparent: str = ""


class OutboxRow(NamedTuple):
    """The columns of a row to insert. ``headers`` is None for an event and set for a dead letter.

    ``by_transport``: the row does not go through the relay, see ``transports``; it counts as published from the start.
    """

    event_id: UUID
    event_type: str
    topic: str
    key: bytes | None
    payload: bytes | None
    headers: bytes | None = None
    traceparent: str = ""
    by_transport: bool = False

    @property
    def shard(self) -> int:
        return zlib.crc32(self.key or b"") % SHARDS


_COLUMNS = "event_id, event_type, topic, key, payload, headers, traceparent, shard"
# WITH ORDINALITY assigns ids, and so the order of publishing, in the order of the list.
_INSERT_MANY = f"""
    INSERT INTO kafka_bridge_outboxmessage ({_COLUMNS}, published_at)
    SELECT {_COLUMNS}, CASE WHEN by_transport THEN statement_timestamp() END
    FROM unnest(%s::uuid[], %s::text[], %s::text[], %s::bytea[], %s::bytea[], %s::bytea[], %s::text[], %s::int[],
                %s::bool[])
         WITH ORDINALITY AS row ({_COLUMNS}, by_transport, position)
    ORDER BY position
"""
# The ids are read only if some rows were not inserted: converting them costs as much as inserting.
_INSERT_NEW = f"""
    WITH inserted AS ({_INSERT_MANY} ON CONFLICT (event_id) DO NOTHING RETURNING event_id)
    SELECT count(*), CASE WHEN count(*) < %s THEN array_agg(event_id::text) END FROM inserted
"""
# The subquery forces an index lookup per id; as a join the planner would scan the table while it is small.
_READ_STORED = """
    SELECT id FROM unnest(%s::uuid[]) AS asked (id)
    WHERE (SELECT true FROM kafka_bridge_outboxmessage WHERE event_id = asked.id)
"""


def publish(messages: Iterable[Message]) -> None:
    """Write ``messages`` to the outbox, in order, within the caller's transaction.

    Raises PublishOutsideTransaction outside ``transaction.atomic``, PayloadTooLarge for a body past
    ``MAX_PAYLOAD_BYTES``, KeyError for a type without a route or a mapping without its key.
    """
    routes: Mapping[str, Route] = settings.KAFKA_ROUTES
    insert_rows([_row(message, routes[message.event_type]) for message in messages])


def insert_rows(rows: Sequence[OutboxRow]) -> None:
    """Insert complete rows, in order, within the caller's transaction."""
    _require_transaction()
    if not rows:
        return
    copying.copy_rows(
        OutboxMessage._meta.db_table,
        {
            "event_id": copying.uuids([row.event_id for row in rows]),
            "event_type": copying.texts([row.event_type for row in rows]),
            "topic": copying.texts([row.topic for row in rows]),
            "key": copying.blobs([row.key for row in rows]),
            "payload": copying.blobs([row.payload for row in rows]),
            "headers": copying.blobs([row.headers for row in rows]),
            "traceparent": copying.texts([row.traceparent for row in rows]),
            "shard": copying.numbers([row.shard for row in rows]),
            # PostgreSQL reads "now" as the start of the transaction.
            "published_at": copying.texts(["now" if row.by_transport else None for row in rows]),
        },
    )
    _wake_relay(rows)


def insert_new_rows(rows: Sequence[OutboxRow]) -> list[bool]:
    """Insert those of ``rows`` whose event id is new; return for each row whether it was inserted.

    Of several rows with the same id the first is inserted. Rows are inserted in the order of their event ids: two
    sessions that insert the same ids in different orders would deadlock.
    """
    _require_transaction()
    with connection.cursor() as cursor:
        cursor.execute(_INSERT_NEW, [*_columns(sorted(rows, key=attrgetter("event_id"))), len(rows)])
        count, event_ids = cursor.fetchone() or (0, None)
    if count:
        _wake_relay(rows)
    if count == len(rows):
        return [True] * count
    inserted = set(event_ids or ())
    was_inserted = []
    for row in rows:
        event_id = str(row.event_id)
        was_inserted.append(event_id in inserted)
        inserted.discard(event_id)
    return was_inserted


def _wake_relay(rows: Sequence[OutboxRow]) -> None:
    if not all(row.by_transport for row in rows):
        wake_relay_on_commit()


def _columns(rows: Sequence[OutboxRow]) -> list[str]:
    return [
        arrays.uuids([row.event_id for row in rows]),
        arrays.texts([row.event_type for row in rows]),
        arrays.texts([row.topic for row in rows]),
        arrays.blobs([row.key for row in rows]),
        arrays.blobs([row.payload for row in rows]),
        arrays.blobs([row.headers for row in rows]),
        arrays.texts([row.traceparent for row in rows]),
        arrays.numbers([row.shard for row in rows]),
        arrays.booleans([row.by_transport for row in rows]),
    ]


def outbox_row(message: Message) -> OutboxRow:
    """Return the row of a message; the route of its type gives topic and key."""
    return _row(message, settings.KAFKA_ROUTES[message.event_type])


def _row(message: Message, route: Route) -> OutboxRow:
    payload = encode_body(message.body)
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise PayloadTooLarge(
            f"{message.event_type}: {len(payload)} bytes, at most {MAX_PAYLOAD_BYTES}; send a reference instead"
        )
    return OutboxRow(
        event_id=message.event_id,
        event_type=message.event_type,
        topic=route.topic,
        key=route.key_of(_field(message.body, route.key_field)),
        payload=payload,
        traceparent=message.traceparent or new_traceparent(),
    )


def _field(body: Mapping[str, Any] | msgspec.Struct, name: str) -> Any:
    if isinstance(body, msgspec.Struct):
        return getattr(body, settings.EVENT_KEY_FIELDS[name])
    return body[name]


def _require_transaction() -> None:
    if not transaction.get_connection().in_atomic_block:
        raise PublishOutsideTransaction("publish() needs transaction.atomic: call it where the change is made")


def stored_payloads(event_type: str, event_ids: Collection[UUID]) -> dict[UUID, bytes]:
    """Return the bodies of those events that are in the outbox, published or not, by event id.

    Copies of dead letters are ignored.
    """
    rows = OutboxMessage.objects.filter(event_id__in=event_ids, event_type=event_type, headers=None)
    return {event_id: bytes(payload or b"") for event_id, payload in rows.values_list("event_id", "payload")}


def stored_ids(event_ids: Collection[UUID]) -> set[UUID]:
    """Return those of ``event_ids`` that are in the outbox, published or not."""
    with connection.cursor() as cursor:
        cursor.execute(_READ_STORED, [arrays.uuids(event_ids)])
        return {event_id for (event_id,) in cursor.fetchall()}
