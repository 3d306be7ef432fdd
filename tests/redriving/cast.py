"""Dead letters of each kind of group, written as the consumers and the relay write them."""

from __future__ import annotations

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


def faulty(name: str, fault: Fault, monkeypatch: Any) -> None:
    """Give the registered group a handler that fails after its work while ``fault`` has an error."""
    group: ConsumerGroup = registry.groups()[name]

    def handle(values: Any) -> None:
        group.handle(values)
        fault(values)

    changed = registry.groups() | {name: replace(group, handle=handle)}
    for module in ("kafka_bridge.redriving.replay", "kafka_bridge.redriving.discarding"):
        monkeypatch.setattr(f"{module}.groups", lambda: changed)
