"""What operators have paused, and their instructions, as the processes concerned know them."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import NamedTuple
from uuid import UUID

from django.db import connection

from ..models import GroupPause, PartitionInstruction, target_name

logger = logging.getLogger(__name__)

# An instruction that no consumer has obeyed by then is dropped: its partition has no consumer, or this one hangs.
OBEYED_WITHIN_SECONDS = 60

_READ = f"""
    SELECT 'pause', consumer_group, topic, partition, NULL, NULL
    FROM {GroupPause._meta.db_table} WHERE consumer_group = ANY(%(names)s)
    UNION ALL
    SELECT action, consumer_group, topic, partition, instruction_id, "offset"
    FROM {PartitionInstruction._meta.db_table}
    WHERE consumer_group = ANY(%(names)s) AND answered_at IS NULL
      AND created_at > statement_timestamp() - %(seconds)s * interval '1 second'
"""
_ANSWER = f"""
    UPDATE {PartitionInstruction._meta.db_table} SET answered_at = statement_timestamp(), answer = %s
    WHERE consumer_group = %s AND topic = %s AND partition = %s AND instruction_id = %s AND answered_at IS NULL
"""
_CORRECT = f"""
    UPDATE {PartitionInstruction._meta.db_table} SET answer = %s
    WHERE consumer_group = %s AND topic = %s AND partition = %s AND instruction_id = %s
"""

_Target = tuple[str, str | None, int | None]


class Instruction(NamedTuple):
    """An instruction for a partition, see ``PartitionInstruction``; ``offset`` None: of no message."""

    id: UUID
    action: str
    group: str
    topic: str
    partition: int
    offset: int | None

    def answer(self, text: str) -> bool:
        """Record what became of it, within the caller's transaction if any; returns False if it was answered before."""
        with connection.cursor() as cursor:
            cursor.execute(_ANSWER, [text[:1000], self.group, self.topic, self.partition, self.id])
            return bool(cursor.rowcount)

    def correct(self, text: str) -> None:
        """Replace its answer, within the caller's transaction if any; does nothing if it was replaced meanwhile."""
        with connection.cursor() as cursor:
            cursor.execute(_CORRECT, [text[:1000], self.group, self.topic, self.partition, self.id])


class PauseWatch:
    """The pauses and instructions for some groups or workers, as of the last ``read``.

    One thread reads; any number of threads ask. Until the first ``read`` everything is paused: what an operator paused
    must not go on because a process was restarted. While the database is away the last known state stays.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = sorted(names)
        # Each read replaces both, so that no lock is needed.
        self._paused: frozenset[_Target] | None = None
        self._instructions: dict[tuple[str, str, int], Instruction] = {}

    def read(self) -> None:
        """Read the state in one query. Raises what the database raises."""
        paused: set[_Target] = set()
        instructions: dict[tuple[str, str, int], Instruction] = {}
        with connection.cursor() as cursor:
            cursor.execute(_READ, {"names": self._names, "seconds": OBEYED_WITHIN_SECONDS})
            for kind, group, topic, partition, instruction_id, offset in cursor.fetchall():
                if kind == "pause":
                    paused.add((group, topic, partition))
                else:
                    found = Instruction(instruction_id, kind, group, topic, partition, offset)
                    instructions[group, topic, partition] = found
        before, self._paused = self._paused or frozenset(), frozenset(paused)
        self._instructions = instructions
        for target in sorted(target_name(*target) for target in self._paused - before):
            logger.warning("%s is paused by an operator", target)
        for target in sorted(target_name(*target) for target in before - self._paused):
            logger.info("%s is resumed", target)

    def is_paused(self, name: str, topic: str | None = None, partition: int | None = None) -> bool:
        """Whether the group or worker ``name`` is paused, or this partition of it; ``topic`` has the prefix."""
        paused = self._paused
        if paused is None:
            return True
        return bool(paused) and ((name, None, None) in paused or (name, topic, partition) in paused)

    @property
    def has_instructions(self) -> bool:
        """Whether there is any instruction."""
        return bool(self._instructions)

    def instruction(self, name: str, topic: str, partition: int) -> Instruction | None:
        """Return the instruction for a partition that is not answered yet, None if there is none."""
        return self._instructions.get((name, topic, partition))

    def forget(self, instruction: Instruction) -> None:
        """Forget an instruction that is answered."""
        self._instructions = {key: one for key, one in self._instructions.items() if one.id != instruction.id}
