"""What the apps register with the bridge: consumer groups, and what a clean-up must leave alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from django.conf import settings

from .contracts import Headers, Route


@dataclass(frozen=True, slots=True)
class ReceivedMessage:
    """A message as it came from Kafka. ``topic`` is without the prefix; ``timestamp`` in ms since 1970."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers

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
    transaction, and must be safe to call again with the same ones. ``on_dead_letters`` runs in the transaction that
    writes the dead letters. Each message's event type is one of ``event_types``; others on the topic are passed over.
    """

    name: str
    event_types: tuple[str, ...]
    decode: Callable[[ReceivedMessage], Any]
    handle: Callable[[Sequence[Any]], None]
    on_dead_letters: Callable[[Sequence[Rejected]], None] = field(default=lambda rejected: None)

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


def register_refusal(event_type: str, end: Callable[[Sequence[Rejected]], None]) -> None:
    """Make the relay call ``end`` for events of that type that the broker refuses for good.

    It runs in the transaction that writes the dead letter, like a group's ``on_dead_letters``.
    """
    _refusals[event_type] = end


def refused(event_type: str, rejected: Sequence[Rejected]) -> None:
    """Do what was registered for refused events of that type."""
    if end := _refusals.get(event_type):
        end(rejected)


def register_undecided(event_type: str, undecided: Callable[[Collection[UUID]], set[UUID]]) -> None:
    """Make pruning ask ``undecided`` which of some event ids of ``event_type`` are still waited for."""
    _undecided[event_type] = undecided


def undecided(event_type: str, event_ids: Collection[UUID]) -> set[UUID]:
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
