"""Dead letters of each kind of group, written as the consumers and the relay write them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from kafka_bridge import registry
from kafka_bridge.consuming.dead_letters import write_dead_letters
from kafka_bridge.models import DeadLetter
from kafka_bridge.registry import ConsumerGroup, ReceivedMessage, Rejected


def letter_of(group: str, message: ReceivedMessage, error: Exception | None = None) -> DeadLetter:
    """The dead letter of ``message``, which ``group`` could not handle."""
    write_dead_letters(group, group, [Rejected(message, error or RuntimeError("a fault"))], publish=False)
    return DeadLetter.objects.get(consumer_group=group, topic=message.topic, offset=message.offset)


@dataclass
class Fault:
    """An error that a handler raises while ``error`` is set."""

    error: Exception | None = None

    def __call__(self, values: Any) -> None:
        if self.error is not None:
            raise self.error


def faulty(name: str, fault: Callable[[Any], None], monkeypatch: Any) -> None:
    """Give the registered group a handler that does ``fault`` after its work."""
    group: ConsumerGroup = registry.groups()[name]

    def handle(values: Any) -> None:
        group.handle(values)
        fault(values)

    changed(replace(group, handle=handle), monkeypatch)


def changed(group: ConsumerGroup, monkeypatch: Any) -> None:
    """Have dead letters replayed by ``group`` in place of the registered one of its name."""
    known = registry.groups() | {group.name: group}
    for module in ("replay", "discarding", "preview"):
        monkeypatch.setattr(f"kafka_bridge.redriving.{module}.groups", lambda: known)
