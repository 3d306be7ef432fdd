"""Dead letters of the groups of this project, made by hand."""

from __future__ import annotations

from collections.abc import Sequence

from kafka_bridge.consuming.dead_letters import write_dead_letters
from kafka_bridge.models import DeadLetter
from kafka_bridge.registry import ReceivedMessage, Rejected, groups


class Refused(Exception):
    """The error of the letters."""


def dead_letters(group: str, messages: Sequence[ReceivedMessage], error: Exception | None = None) -> list[int]:
    """Write dead letters of a group as its consumer does, without copies on Kafka; returns their ids."""
    last = DeadLetter.objects.order_by("-id").values_list("id", flat=True).first() or 0
    rejected = [Rejected(message, error or Refused("the provider refused it")) for message in messages]
    write_dead_letters(group, groups()[group].group_id if group in groups() else group, rejected, publish=False)
    return list(DeadLetter.objects.filter(id__gt=last).order_by("id").values_list("id", flat=True))
