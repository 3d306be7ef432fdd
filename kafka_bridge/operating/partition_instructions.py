"""Instructions of operators for partitions that are tried again: at their poison limit, or at a message."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

from django.db import transaction
from django.db.models.functions import Now

from ..models import PartitionInstruction
from .audit import record_action
from .group_pauses import PauseTarget

Action = PartitionInstruction.Action


def instruct(target: PauseTarget, action: Action, *, actor: str, reason: str, offset: int | None = None) -> None:
    """Tell the consumer of ``target``, which is a partition, what to do; it replaces the instruction before.

    ``offset`` is that of the message to be dead-lettered, as the operator saw it: if the partition has moved on,
    nothing happens. The consumer obeys within two seconds, and its answer is in ``last_instructions``.
    """
    assert target.topic is not None
    assert target.partition is not None
    assert (offset is not None) == (action == Action.DEAD_LETTER)
    with transaction.atomic():
        PartitionInstruction.objects.update_or_create(
            consumer_group=target.name,
            topic=target.topic,
            partition=target.partition,
            defaults={
                "instruction_id": uuid4(),
                "action": action,
                "offset": offset,
                "reason": reason[:500],
                "actor": actor[:150],
                "created_at": Now(),
                "answered_at": None,
                "answer": "",
            },
        )
        after = None if offset is None else {"offset": offset}
        record_action(actor=actor, action=f"partition.{action.value}", subject=str(target), reason=reason, after=after)


def last_instructions(within_seconds: int = 3600) -> dict[PauseTarget, PartitionInstruction]:
    """Return the last instruction of each partition, as far as it is no older."""
    found = PartitionInstruction.objects.filter(created_at__gt=Now() - timedelta(seconds=within_seconds))
    return {PauseTarget(row.consumer_group, row.topic, row.partition): row for row in found}
