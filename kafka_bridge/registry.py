"""What the apps register with the bridge: consumer groups, and callbacks of the relay and of pruning."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, TypeVar, get_type_hints
from uuid import UUID, uuid5

import msgspec
from django.conf import settings

from common.processes.lifecycle import StopFlag
from common.trace_context import new_traceparent, read_traceparent

from .cloudevents import Headers
from .errors import PoisonMessage
from .local_times import local_time
from .routes import Route

Body = TypeVar("Body", bound=msgspec.Struct)

_NO_EVENT_ID = UUID("5f0b6c1e-7a3d-5c52-9d0e-1b6f3a2c4d5e")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Up to here every time zone has the time in its calendar. A foreign producer may set any timestamp.
_LATEST_TIMESTAMP = (datetime(9998, 12, 31, tzinfo=UTC) - _EPOCH) // timedelta(milliseconds=1)


class ReceivedMessage(msgspec.Struct, frozen=True, gc=False):
    """A message received from Kafka. ``topic`` is without the prefix; ``timestamp`` is in ms since 1970, -1 for none.

    A message that another transport brings, or that the broker refused, has the partition -1 and the timestamp 0.

    ``unreadable`` names what cannot be read, else it is empty; ``is_of_types`` treats such a message as poison.
    """

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    unreadable: str = ""

    def header(self, name: str) -> bytes | None:
        """Return the value of the first header ``name``, None without one."""
        for header, value in self.headers:
            if header == name:
                return value
        return None

    @property
    def event_id(self) -> UUID | None:
        """The UUID in the ``ce_id`` header, None if there is none."""
        try:
            return UUID((self.header("ce_id") or b"").decode("ascii"))
        except ValueError:
            return None

    @property
    def inbox_id(self) -> UUID:
        """The message's id in the inbox: its event id, or a UUID of its position if it has none.

        The timestamp distinguishes messages at the same offset of a topic that was deleted and recreated.
        """
        position = f"{self.topic}/{self.partition}/{self.offset}/{self.timestamp}"
        return self.event_id or uuid5(_NO_EVENT_ID, position)

    @property
    def published_at(self) -> datetime | None:
        """The time of publishing by ``timestamp``, in UTC; None if it was not published or has no usable timestamp."""
        if not 0 < self.timestamp <= _LATEST_TIMESTAMP:
            return None
        return _EPOCH + timedelta(milliseconds=self.timestamp)

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}]@{self.offset}"


@dataclass(frozen=True, slots=True)
class Rejected:
    """A message that becomes a dead letter, and the error that is the reason."""

    message: ReceivedMessage
    error: BaseException


@dataclass(frozen=True, slots=True)
class ReplayedMessage:
    """A message of a dead letter that is replayed: the letter's id, and the number of this replay, from 1."""

    message: ReceivedMessage
    letter_id: int
    attempt: int


# Handles a dead letter's message again, in the transaction that closes the letter. Returns "<kind>: <particulars>" for
# the operator, or None if nothing is left to do. Raises ReplayPostponed if it can succeed only later, and the error of
# a message that still fails. What it does outside PostgreSQL happens after the commit.
Replay = Callable[[ReplayedMessage], str | None]


@dataclass(frozen=True, slots=True)
class ConsumerGroup:
    """A consumer group: one effect of events, with its own offsets.

    ``decode`` converts a message to the argument of ``handle``, and raises PoisonMessage for an unreadable one; it must
    not use the database. ``handle`` gets the decoded messages of one partition in offset order, inside a transaction.
    ``on_dead_letters`` runs in the transaction that writes the dead letters. Messages of other types than
    ``event_types`` are skipped.

    Without ``inbox``, ``handle`` must be safe to repeat with the same messages. With it, the bridge writes a row per
    group and event in the transaction of ``handle``, which then gets every event once.

    ``call`` is for work that must not happen inside a transaction, such as HTTP. It gets the messages that are not in
    the inbox, before ``handle``, and gets them again after a crash: it must use the event id as idempotency key.
    It returns for each message None or its error. A poison error (CallRefused) makes the message a dead letter at
    once; CallPostponed postpones it for the error's ``seconds``, while other messages of the partition are handled;
    any other error is retried, ``CONSUMER_MAX_ATTEMPTS`` tries in all. ``call`` raises ServiceUnavailable when no call
    succeeds: then the partition retries. ``largest_batch`` limits a batch.

    ``read_topics`` replaces the topics of ``event_types``: it returns names without the prefix, and every message on
    these topics is decoded, whatever its type.

    A replay of a dead letter calls ``decode`` and ``handle`` like the consumer, unless ``replay`` is set: for a group
    whose ``on_dead_letters`` ended something that must be opened again, see ``Replay``. ``describe_call`` says in one
    line what ``call`` would send for a decoded message, for the preview of a replay.

    ``log_only``: failures are logged and count as handled, without retries of the partition or dead letters;
    only while the database is down the partition retries, since without it nothing can be recorded.

    ``is_counted`` says whether the key figures count a message; it gets every message and must not fail.

    ``preview_disturbs`` says of each decoded message why a preview, which holds the locks of ``handle`` for up to two
    seconds, would disturb running work; empty: it would not. None: it never would.
    """

    name: str
    event_types: tuple[str, ...]
    decode: Callable[[ReceivedMessage], Any]
    handle: Callable[[Sequence[Any]], None] = field(default=lambda values: None)
    on_dead_letters: Callable[[Sequence[Rejected]], None] = field(default=lambda rejected: None)
    inbox: bool = False
    call: Callable[[Sequence[Any], StopFlag], Sequence[Exception | None]] | None = None
    largest_batch: int | None = None
    read_topics: Callable[[], Collection[str]] | None = None
    log_only: bool = False
    preview_disturbs: Callable[[Sequence[Any]], Sequence[str]] | None = None
    replay: Replay | None = None
    is_counted: Callable[[ReceivedMessage], bool] | None = None
    describe_call: Callable[[Any], str] = field(default=lambda value: "the call of the event")

    def __post_init__(self) -> None:
        if self.call is not None and not self.inbox:
            raise ValueError(
                f"group {self.name!r} has a call: it needs the inbox, or a redelivered batch is sent twice"
            )

    @property
    def group_id(self) -> str:
        """The group id at the broker, with the prefix."""
        return f"{settings.KAFKA_TOPIC_PREFIX}{settings.KAFKA_GROUPS[self.name]}"

    @property
    def topics(self) -> list[str]:
        """The topics of ``event_types``, or those of ``read_topics``, sorted, with the prefix."""
        if self.read_topics is not None:
            return sorted({prefixed(name) for name in self.read_topics()})
        return sorted({prefixed(settings.KAFKA_ROUTES[name].topic) for name in self.event_types})

    def accepts(self, message: ReceivedMessage) -> bool:
        """Whether the group handles the message, or skips it. Raises PoisonMessage, see ``is_of_types``."""
        return self.read_topics is not None or is_of_types(message, self.event_types)


_groups: dict[str, ConsumerGroup] = {}
_rejection_callbacks: dict[str, Callable[[Sequence[Rejected]], None]] = {}
_rejected_replays: dict[str, Replay] = {}
_retention_guards: dict[str, Callable[[Collection[UUID]], set[UUID]]] = {}
_transports: set[str] = set()


def register_group(group: ConsumerGroup) -> None:
    """Register ``group``. Raises ValueError if its name is not in ``KAFKA_GROUPS`` or is registered already."""
    if group.name not in settings.KAFKA_GROUPS:
        raise ValueError(f"no id for group {group.name!r} in KAFKA_GROUPS")
    if _groups.setdefault(group.name, group) is not group:
        raise ValueError(f"group {group.name!r} is registered twice")


def groups() -> dict[str, ConsumerGroup]:
    """Return the registered groups by name."""
    return dict(_groups)


def on_broker_rejection(
    event_type: str, end: Callable[[Sequence[Rejected]], None], *, replay: Replay | None = None
) -> None:
    """Register ``end`` for events of ``event_type`` that the broker refuses for good.

    The relay calls it in the transaction that writes the dead letter, like a group's ``on_dead_letters``. A replay of
    such a letter calls ``replay``; without it the event is published again.
    """
    _rejection_callbacks[event_type] = end
    if replay is not None:
        _rejected_replays[event_type] = replay


def replay_of_rejected(event_type: str) -> Replay | None:
    """Return what ``on_broker_rejection`` registered for replays of ``event_type``, None if nothing."""
    return _rejected_replays.get(event_type)


def broker_rejected(event_type: str, rejected: Sequence[Rejected]) -> None:
    """Call what ``on_broker_rejection`` registered for ``event_type``, if anything."""
    if end := _rejection_callbacks.get(event_type):
        end(rejected)


def register_retention_guard(event_type: str, undecided: Callable[[Collection[UUID]], set[UUID]]) -> None:
    """Register ``undecided``: of given event ids of ``event_type`` it returns those that pruning must keep."""
    _retention_guards[event_type] = undecided


def retained_ids(event_type: str, event_ids: Collection[UUID]) -> set[UUID]:
    """Return those of ``event_ids`` whose outbox rows pruning must keep."""
    undecided = _retention_guards.get(event_type)
    return undecided(event_ids) if undecided and event_ids else set()


def guarded_event_types() -> set[str]:
    """Return the event types with a registered retention guard."""
    return set(_retention_guards)


def register_transport(name: str) -> None:
    """Register what rows of another transport than Kafka have in their topic column, see ``outbox.transports``."""
    _transports.add(name)


def transports() -> set[str]:
    """Return the names of the registered transports."""
    return set(_transports)


def prefixed(name: str) -> str:
    """Return a topic's name at the broker, with the prefix."""
    return f"{settings.KAFKA_TOPIC_PREFIX}{name}"


def unprefixed(name: str) -> str:
    """Return a topic's name in the settings, without the prefix."""
    return name.removeprefix(settings.KAFKA_TOPIC_PREFIX)


def event_types_of(topic: str) -> set[str]:
    """Return the event types that the routes send to ``topic`` (without the prefix)."""
    routes: dict[str, Route] = settings.KAFKA_ROUTES
    return {event_type for event_type, route in routes.items() if route.topic == topic}


def former_event_types_of(topic: str) -> set[str]:
    """Return the event types that earlier routes sent to ``topic`` (without the prefix)."""
    former: dict[str, tuple[str, ...]] = settings.KAFKA_FORMER_TOPICS
    return {event_type for event_type, topics in former.items() if topic in topics}


def former_topic_names() -> set[str]:
    """Return the topics of earlier routes, without the prefix."""
    former: dict[str, tuple[str, ...]] = settings.KAFKA_FORMER_TOPICS
    return {topic for topics in former.values() for topic in topics}


def topics_with_history(event_types: Collection[str]) -> set[str]:
    """Return all topics that have events of these types, without the prefix: those of present and earlier routes."""
    former: dict[str, tuple[str, ...]] = settings.KAFKA_FORMER_TOPICS
    present = {settings.KAFKA_ROUTES[event_type].topic for event_type in event_types}
    return present.union(*(former.get(event_type, ()) for event_type in event_types))


def decode_body(message: ReceivedMessage, decoder: msgspec.json.Decoder[Body], what: str) -> Body:
    """Decode the body of ``message``. Raises PoisonMessage ("not a valid ``what``") if ``decoder`` refuses it.

    A time without a zone is read in ``BUSINESS_TIME_ZONE``. A time in the years 1 or 9999 is refused too: a time zone
    could move it out of the calendar.
    """
    if message.value is None:
        raise PoisonMessage("the message has no body")
    try:
        try:
            body = decoder.decode(message.value)
        except msgspec.ValidationError:
            body = _decode_with_local_times(message.value, decoder)
        for name in _time_fields(type(body)):
            moment: datetime | None = getattr(body, name)
            if moment is not None and not 2 <= moment.year <= 9998:
                raise ValueError(f"{name} is at the edge of the calendar: {moment}")
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise PoisonMessage(f"not a valid {what}: {error}") from error
    return body


def _decode_with_local_times(value: bytes, decoder: msgspec.json.Decoder[Body]) -> Body:
    """Decode a body whose times have no zone. Raises as ``decoder`` does if it refuses the body for another reason."""
    fields = msgspec.json.decode(value)
    found = False
    if isinstance(fields, dict):
        names = _time_fields(decoder.type)
        encoded = {field.name: field.encode_name for field in msgspec.structs.fields(decoder.type)}
        for name in (encoded[name] for name in names):
            if moment := local_time(fields.get(name)):
                fields[name] = moment
                found = True
    if not found:
        return decoder.decode(value)
    return msgspec.convert(fields, decoder.type)


@cache
def _time_fields(body: type[msgspec.Struct]) -> tuple[str, ...]:
    """Return the names of the fields that hold a datetime, or a datetime or None."""
    optional_times: tuple[object, ...] = (datetime, datetime | None)
    return tuple(name for name, kind in get_type_hints(body).items() if kind in optional_times)


def is_of_types(message: ReceivedMessage, event_types: Collection[str]) -> bool:
    """Whether the message is of one of ``event_types``; one without ``ce_type`` counts as such.

    Raises PoisonMessage for a type that no route of the topic has or had, and for ``unreadable`` messages of
    ``event_types``.
    """
    header = message.header("ce_type")
    event_type = None if header is None else header.decode()
    if event_type is not None and event_type not in event_types:
        if event_type in event_types_of(message.topic) | former_event_types_of(message.topic):
            return False
        raise PoisonMessage(f"unknown event type or version {event_type[:100]!r}")
    if message.unreadable:
        raise PoisonMessage(message.unreadable)
    return True


def traceparent_of(message: ReceivedMessage) -> str:
    """Return the message's W3C trace context, a new one if it has no valid one."""
    raw = (message.header("traceparent") or b"").decode("ascii", "replace")
    return read_traceparent(raw) or new_traceparent()
