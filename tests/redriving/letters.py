"""Dead letters of the groups of this project, made by hand, and redrives of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.db import connection, transaction

from common.processes.lifecycle import StopFlag
from kafka_bridge.consuming.dead_letters import write_dead_letters
from kafka_bridge.models import DeadLetter, Redrive
from kafka_bridge.redriving.executor import RedriveExecutor
from kafka_bridge.redriving.letter_filter import LetterFilter
from kafka_bridge.redriving.redrives import ENDED, redrive_create, redrive_start
from kafka_bridge.registry import ReceivedMessage, Rejected, groups


class Refused(Exception):
    """The error of the letters."""


def dead_letters(
    group: str, messages: Sequence[ReceivedMessage], error: Exception | None = None, *, ended: bool = False
) -> list[int]:
    """Write dead letters of a group, without copies on Kafka; returns their ids.

    With ``ended`` as its consumer does: what they asked for has failed.
    """
    last = DeadLetter.objects.order_by("-id").values_list("id", flat=True).first() or 0
    rejected = [Rejected(message, error or Refused("the provider refused it")) for message in messages]
    write_dead_letters(group, group, rejected, publish=False)
    if ended and group in groups():
        with transaction.atomic():
            groups()[group].on_dead_letters(rejected)
    return list(DeadLetter.objects.filter(id__gt=last).order_by("id").values_list("id", flat=True))


def insert_letters(number: int) -> None:
    """Letters that cannot be read, of two error classes."""
    with connection.cursor() as cursor:
        cursor.execute(
            'INSERT INTO kafka_bridge_deadletter (consumer_group, topic, partition, "offset", message_timestamp,'
            " event_type, headers, error_class, error_message)"
            " SELECT 'monitoring', 'order-completed', 0, n, 0, '', '[]', 'E' || n %% 2, ''"
            " FROM generate_series(1, %s) n",
            [number],
        )


def create(letters: LetterFilter | Sequence[int] | None = None, *, rate: int = 1000) -> Redrive:
    """A redrive of all open letters unless others are given."""
    letters = LetterFilter() if letters is None else letters
    return redrive_create(name="fixed", reason="the provider is mended", actor="olga", letters=letters, rate=rate)


def step(executor: RedriveExecutor | None = None) -> bool:
    return (executor or RedriveExecutor()).step(StopFlag())


def start(redrive: Redrive) -> Redrive:
    """Preview a redrive and start it."""
    step()
    return redrive_start(redrive.pk, actor="olga", typed_count=redrive.total)


def execute(redrive: Redrive, executor: RedriveExecutor | None = None) -> Redrive:
    """Preview, start and execute a redrive to its end."""
    return to_the_end(start(redrive), executor)


def to_the_end(redrive: Redrive, executor: RedriveExecutor | None = None) -> Redrive:
    executor = executor or RedriveExecutor()
    while redrive.state not in ENDED:
        step(executor)
        redrive.refresh_from_db()
    return redrive


def counts_of_preview(redrive: Redrive) -> Any:
    redrive.refresh_from_db()
    assert redrive.preview is not None
    return redrive.preview["counts"]
