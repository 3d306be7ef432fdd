"""What the apps register with the bridge: consumer groups, and what a clean-up must leave alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID, uuid5

import msgspec
from django.conf import settings

from common.processes.lifecycle import StopFlag
from common.trace_context import new_traceparent, read_traceparent

from .cloudevents import Headers
from .errors import PoisonMessage
from .routes import Route

Body = TypeVar("Body", bound=msgspec.Struct)

_NO_EVENT_ID = UUID("5f0b6c1e-7a3d-5c52-9d0e-1b6f3a2c4d5e")


@dataclass(frozen=True, slots=True)
class ReceivedMessage:
    """A message as it came from Kafka. ``topic`` is without the prefix; ``timestamp`` in ms since 1970.

    ``unreadable`` says what of it cannot be read; ``is_of_types`` makes it poison.
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
        """The value of the first header of that name."""
        for header, value in self.headers:
            if header == name:
                return value
        return None

    @property
    def event_id(self) -> UUID | None:
        """The id that the ``ce_id`` header names, if it is a UUID."""
        try:
            return UUID((self.header("ce_id") or b"").decode("ascii"))
        except ValueError:
            return None

    @property
    def inbox_id(self) -> UUID:
        """Under what the message is known in an inbox: its event id, or its place if it brought none.

        The timestamp tells apart two messages at one offset of a topic that was deleted and made anew.
        """
        place = f"{self.topic}/{self.partition}/{self.offset}/{self.timestamp}"
        return self.event_id or uuid5(_NO_EVENT_ID, place)

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}]@{self.offset}"


@dataclass(frozen=True, slots=True)
class Rejected:
    """A message that became a dead letter, and the error that made it one."""

    message: ReceivedMessage
    error: BaseException


@dataclass(frozen=True, slots=True)
class ConsumerGroup:
    """One effect, with offsets of its own.

    ``decode`` turns a message into what ``handle`` takes and raises PoisonMessage for what it cannot read; it must
    not touch the database. ``handle`` gets the decoded messages of one partition in offset order, inside a
    transaction. ``on_dead_letters`` runs in the transaction that writes the dead letters. Each message's event type is
    one of ``event_types``; others on the topic are passed over.

    Without ``inbox``, ``handle`` must be safe to call again with the same messages. With it, the bridge keeps a row per
    group and event in the transaction of ``handle``, which then gets every event once.

    ``call`` is for what must not happen inside a transaction, such as HTTP. It gets the messages that the inbox does
    not know, before ``handle``, and may get them again after a crash: it passes the event id on as the idempotency key.
    It returns for each message None, or the error it ended with: a poison one (CallRefused) makes it a dead letter at
    once, CallPostponed lets the partition wait for as long as it says and others of it go on, any other is tried again,
    ``CONSUMER_MAX_ATTEMPTS`` times in all. It raises ServiceUnavailable when nothing
    gets through: then the partition waits. ``largest_batch`` bounds what is under way at once.

    ``log_only`` (seed 004): what fails is logged and counts as handled, instead of waiting or becoming a dead letter;
    only a database that is away is waited for, since without it nothing can be noted.
    """

    name: str
    event_types: tuple[str, ...]
    decode: Callable[[ReceivedMessage], Any]
    handle: Callable[[Sequence[Any]], None] = field(default=lambda values: None)
    on_dead_letters: Callable[[Sequence[Rejected]], None] = field(default=lambda rejected: None)
    inbox: bool = False
    call: Callable[[Sequence[Any], StopFlag], Sequence[Exception | None]] | None = None
    largest_batch: int | None = None
    log_only: bool = False

    def __post_init__(self) -> None:
        if self.call is not None and not self.inbox:
            raise ValueError(
                f"group {self.name!r} calls out: it needs the inbox, or a batch that comes again is sent again"
            )

    @property
    def group_id(self) -> str:
        """The id as the broker knows it, with the prefix."""
        return f"{settings.KAFKA_TOPIC_PREFIX}{settings.KAFKA_GROUPS[self.name]}"

    @property
    def topics(self) -> list[str]:
        """The topics as the broker knows them, with the prefix."""
        return sorted({prefixed(settings.KAFKA_ROUTES[name].topic) for name in self.event_types})


_groups: dict[str, ConsumerGroup] = {}
_refusals: dict[str, Callable[[Sequence[Rejected]], None]] = {}
_undecided: dict[str, Callable[[Collection[UUID]], set[UUID]]] = {}


def register_group(group: ConsumerGroup) -> None:
    """Make ``group`` known; its name must stand in ``KAFKA_GROUPS``. A second group of one name is an error."""
    if group.name not in settings.KAFKA_GROUPS:
        raise ValueError(f"no id for group {group.name!r} in KAFKA_GROUPS")
    if _groups.setdefault(group.name, group) is not group:
        raise ValueError(f"group {group.name!r} is registered twice")


def groups() -> dict[str, ConsumerGroup]:
    """The registered groups by name."""
    return dict(_groups)


def on_broker_rejection(event_type: str, end: Callable[[Sequence[Rejected]], None]) -> None:
    """Make the relay call ``end`` for events of that type that the broker refuses for good.

    It runs in the transaction that writes the dead letter, like a group's ``on_dead_letters``.
    """
    _refusals[event_type] = end


def broker_rejected(event_type: str, rejected: Sequence[Rejected]) -> None:
    """Do what was registered for refused events of that type."""
    if end := _refusals.get(event_type):
        end(rejected)


def register_retention_guard(event_type: str, undecided: Callable[[Collection[UUID]], set[UUID]]) -> None:
    """Make pruning ask ``undecided`` which of some event ids of ``event_type`` are still waited for."""
    _undecided[event_type] = undecided


def retained_ids(event_type: str, event_ids: Collection[UUID]) -> set[UUID]:
    """Those of ``event_ids`` whose outbox rows must be kept."""
    check = _undecided.get(event_type)
    return check(event_ids) if check and event_ids else set()


def prefixed(name: str) -> str:
    """A topic's name as the broker knows it."""
    return f"{settings.KAFKA_TOPIC_PREFIX}{name}"


def unprefixed(name: str) -> str:
    """A topic's name as the settings know it."""
    return name.removeprefix(settings.KAFKA_TOPIC_PREFIX)


def event_types_of(topic: str) -> set[str]:
    """The event types that the routes send to ``topic`` (without the prefix)."""
    routes: dict[str, Route] = settings.KAFKA_ROUTES
    return {event_type for event_type, route in routes.items() if route.topic == topic}


def decode_body(message: ReceivedMessage, decoder: msgspec.json.Decoder[Body], what: str) -> Body:
    """The body of ``message``; PoisonMessage, which calls it ``what``, if it is none that ``decoder`` takes.

    Nor may a field be a time at the edge of the calendar, which a zone moves out of the years 1 to 9999.
    """
    if message.value is None:
        raise PoisonMessage("the message has no body")
    try:
        body = decoder.decode(message.value)
        for name in body.__struct_fields__:
            if isinstance(moment := getattr(body, name), datetime) and not 2 <= moment.year <= 9998:
                raise ValueError(f"{name} is at the edge of the calendar: {moment}")
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise PoisonMessage(f"not a valid {what}: {error}") from error
    return body


def is_of_types(message: ReceivedMessage, event_types: Collection[str]) -> bool:
    """Whether the message is of one of ``event_types``, as a group would judge.

    Raises PoisonMessage for an unknown type and for one of ``event_types`` that is ``unreadable``.
    """
    header = message.header("ce_type")
    event_type = None if header is None else header.decode()
    if event_type is not None and event_type not in event_types:
        if event_type in event_types_of(message.topic):
            return False
        raise PoisonMessage(f"unknown event type or version {event_type[:100]!r}")
    if message.unreadable:
        raise PoisonMessage(message.unreadable)
    return True


def traceparent_of(message: ReceivedMessage) -> str:
    """The W3C trace context of the message; a new one if it brings none that is valid."""
    raw = (message.header("traceparent") or b"").decode("ascii", "replace")
    return read_traceparent(raw) or new_traceparent()
