"""The steps of a request or an order as a page shows them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from django.db.models import Model
from django.urls import reverse

from kafka_bridge.models import OutboxMessage
from kafka_bridge.operating.delivery import Delivery
from kafka_bridge.outbox.message_trace import OutboxTrace
from kafka_bridge.registry import prefixed

State = Literal["done", "waiting", "failed", "skipped", "unknown"]

# The class of a state in ops.css.
_LOOKS = {
    "done": "is-ok",
    "waiting": "is-warning",
    "failed": "is-critical",
    "skipped": "is-quiet",
    "unknown": "is-quiet",
}


@dataclass(frozen=True, slots=True)
class Fact:
    """A name and a value of a step; ``address``: where the value leads, empty for nowhere."""

    name: str
    value: str
    address: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """A step; ``at``: when it happened, empty if unknown. ``text`` is a sentence or empty."""

    name: str
    state: State
    at: str = ""
    text: str = ""
    facts: tuple[Fact, ...] = ()

    @property
    def look(self) -> str:
        return _LOOKS[self.state]


def exact(moment: datetime | None) -> str:
    """Write a time in UTC to the millisecond: ``2026-07-01 03:00:00.123``; None is empty."""
    return "" if moment is None else f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}"[:-3]


def given(*facts: Fact | None) -> tuple[Fact, ...]:
    """Return the facts that there are."""
    return tuple(fact for fact in facts if fact is not None and fact.value)


def row_address(model: type[Model], key: object) -> str:
    """Return the address of a row in the admin."""
    return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_change", args=[key])


def outbox_facts(message: OutboxTrace) -> tuple[Fact, ...]:
    """Return what the outbox has of a message."""
    held = message.held
    return given(
        Fact("event", f"{message.event_type} {message.event_id}"),
        Fact("outbox row", str(message.row_id), row_address(OutboxMessage, message.row_id)),
        Fact("shard", str(message.shard)),
        Fact("topic", prefixed(message.topic)),
        Fact("partition by its key", "" if message.partition is None else str(message.partition)),
        Fact("held", f"since {exact(held.since)}, for its {held.reason}, {held.attempts} attempts" if held else ""),
        Fact("last error", held.last_error if held else ""),
        Fact("traceparent", message.traceparent),
    )


def publishing_step(name: str, message: OutboxTrace) -> Step:
    """Return the step of an event of the outbox."""
    state: State = "done" if message.is_published else "waiting"
    text = "Published." if message.is_published else "Not published yet."
    return Step(name, state, exact(message.created_at), text, outbox_facts(message))


def delivery_step(name: str, delivery: Delivery, facts: Iterable[Fact] = ()) -> Step:
    """Return the step of an event in one consumer group."""
    letter = delivery.letter
    letter_fact = None
    if letter is not None:
        state_of_letter = "open" if letter.closed_at is None else f"closed {exact(letter.closed_at)}"
        letter_fact = Fact(
            f"dead letter, {state_of_letter}", f"{letter.id}: {letter.error_class}", letter_address(letter)
        )
    shown = given(Fact("group", delivery.group), letter_fact, *facts)
    if delivery.handled_at is not None:
        return Step(name, "done", exact(delivery.handled_at), "Handled.", shown)
    if letter is not None:
        return Step(name, "failed", exact(letter.created_at), "The group could not handle it.", shown)
    text = "Not handled yet." if delivery.problem else "Not handled yet, or its row in the inbox was deleted since."
    return Step(name, "waiting", "", text, shown)


def letter_address(letter: Model) -> str:
    """Return the address of a dead letter in the admin."""
    return row_address(type(letter), letter.pk)
