"""What a consumer does when an operator instructs one of its retrying partitions, see ``PartitionInstruction``."""

from __future__ import annotations

import logging
from collections.abc import Collection
from uuid import UUID

from common.processes.lifecycle import StopFlag, drop_connection, first_line

from ..models import DeadLetter, PartitionInstruction
from ..operating.pause_watch import Instruction
from ..registry import ReceivedMessage
from ..subscriptions import Subscription
from .batch import BatchInterrupted
from .paused_partitions import PausedPartitions
from .retrying_partitions import Partition, RetryingPartitions
from .subscription_handler import SubscriptionHandler

logger = logging.getLogger(__name__)

Action = PartitionInstruction.Action


class _Replaced(Exception):
    """Another instruction has replaced this one, or another consumer has answered it."""


class InstructedPartitions:
    """Obeys the instructions for the partitions of one consumer, and answers each."""

    def __init__(
        self,
        subscription: Subscription,
        handler: SubscriptionHandler,
        retrying: RetryingPartitions,
        paused: PausedPartitions,
    ) -> None:
        self._subscription = subscription
        self._handler = handler
        self._retrying = retrying
        self._paused = paused
        # By group and partition: the instruction that waits for a first try, and the offset that it is for.
        self._awaited: dict[tuple[str, Partition], tuple[UUID, int]] = {}

    def obey(
        self,
        partition: Partition,
        instruction: Instruction,
        first: ReceivedMessage | None,
        stop: StopFlag,
        *,
        is_at_end: bool,
    ) -> bool:
        """Obey ``instruction``; ``first`` is the message that the partition waits at, None if it has none.

        ``is_at_end``: whether the partition was read to its end. As long as the partition was not tried at the message
        of the instruction, which is given while it has no consumer, nothing happens and there is no answer.
        Returns whether ``first`` was handled or dead-lettered, so that the partition moves on behind it. Raises
        nothing: a failure becomes the answer.
        """
        try:
            if self._is_early(partition, instruction, first, is_at_end=is_at_end):
                return False
            return self._obey(partition, instruction, first, stop)
        except BatchInterrupted:
            return False
        except _Replaced:
            logger.info("%s: the instruction %s was replaced", self._subscription.name, instruction.action)
        except Exception as error:
            logger.warning(
                "%s: instruction %s failed: %s", self._subscription.name, instruction.action, first_line(error)
            )
            drop_connection()
            self._answer(instruction, f"failed, nothing was done: {first_line(error)}")
        self._paused.forget_instruction(instruction)
        return False

    def _is_early(
        self, partition: Partition, instruction: Instruction, first: ReceivedMessage | None, *, is_at_end: bool
    ) -> bool:
        """Whether the partition may still come to wait at the message that the instruction is for.

        An instruction of no message is for the one that the partition is at when it is first seen.
        """
        if partition in self._retrying or self._paused.is_wanted(partition):
            return False
        if first is None:
            # Until the end is known, its first message may be under way.
            return not is_at_end
        key = instruction.group, partition
        known, offset = self._awaited.get(key, (None, 0))
        if known != instruction.id:
            offset = first.offset if instruction.offset is None else instruction.offset
            self._awaited[key] = instruction.id, offset
        return first.offset <= offset

    def _obey(
        self, partition: Partition, instruction: Instruction, first: ReceivedMessage | None, stop: StopFlag
    ) -> bool:
        is_settled = False
        if self._paused.is_wanted(partition):
            self._answer(instruction, "nothing was done: the partition is paused")
        elif first is None:
            self._answer(instruction, "nothing was done: the partition does not wait any more")
        elif partition not in self._retrying:
            # Whether it will wait at this message is not known.
            self._answer(instruction, f"nothing was done: the partition has moved on, to offset {first.offset}")
        elif instruction.action == Action.DEAD_LETTER:
            is_settled = self._settle(instruction, first, stop)
        elif self._answer(instruction, f"obeyed: {first} is tried again"):
            if instruction.action == Action.CONTINUE:
                self._handler.allow_dead_letters()
            self._retrying.retry_now(partition)
        self._paused.forget_instruction(instruction)
        return is_settled

    def _settle(self, instruction: Instruction, first: ReceivedMessage, stop: StopFlag) -> bool:
        """Handle ``first`` by itself, and dead-letter it if that fails, if it is the message that the operator saw.

        A partition waits with a batch, and any message of it may be the one that fails: one that succeeds alone is
        handled instead, and the partition waits at the next.
        """
        if first.offset != instruction.offset:
            self._answer(instruction, f"nothing was done: the partition has moved on, to offset {first.offset}")
            return False

        failures: dict[str, str] = {}
        is_shared = len(self._subscription.groups) > 1

        def describe(groups: Collection[str]) -> str:
            # Names come first: a long answer is cut.
            whose = f" for {', '.join(groups)}" if is_shared else ""
            why = f" failed with {'; '.join(failures.values())}" if failures else ""
            return f"dead-lettered{whose}: {first}{why}"

        def answer(group: str, error: Exception) -> None:
            # Within the transaction of the group's dead letter.
            failures[group] = f"{type(error).__name__}: {first_line(error)}{f' (in {group})' if is_shared else ''}"
            if len(failures) > 1:
                instruction.correct(describe(failures))
            elif not instruction.answer(describe(failures)):
                raise _Replaced

        if not self._handler.handle_or_dead_letter(first, stop, answer):
            groups = self._groups_with_letter(first)
            self._answer(instruction, describe(groups) if groups else f"handled, it succeeds by itself: {first}")
        elif is_shared:
            try:
                # A group that refuses the message for good has dead-lettered it without an instruction.
                if (groups := self._groups_with_letter(first)) != list(failures):
                    instruction.correct(describe(groups))
            except Exception as error:
                # The message is settled all the same.
                logger.warning("%s: answer not completed: %s", self._subscription.name, first_line(error))
                drop_connection()
        return True

    def _groups_with_letter(self, message: ReceivedMessage) -> list[str]:
        """Return the groups of which ``message`` is a dead letter, in the order of the subscription."""
        found = DeadLetter.objects.filter(
            consumer_group__in=self._subscription.names,
            topic=message.topic,
            partition=message.partition,
            offset=message.offset,
            message_timestamp=message.timestamp,
        ).values_list("consumer_group", flat=True)
        return sorted(set(found), key=self._subscription.names.index)

    def _answer(self, instruction: Instruction, text: str) -> bool:
        """Answer; returns False if it was answered or replaced meanwhile, or PostgreSQL does not answer."""
        try:
            is_new = instruction.answer(text)
        except Exception as error:
            logger.warning("%s: instruction not answered: %s", self._subscription.name, first_line(error))
            drop_connection()
            return False
        if is_new:
            logger.info("%s: instruction %s: %s", self._subscription.name, instruction.action, text)
        return is_new
