"""Handling of a batch by all groups of a subscription, one after the other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from functools import partial

from common.processes.lifecycle import StopFlag

from ..registry import ReceivedMessage, prefixed
from ..subscriptions import Subscription
from .batch import BatchHandler, BatchInterrupted, BatchPostponed
from .retrying_partitions import Partition


class SubscriptionHandler:
    """Gives each batch to the groups that read its topic, in order; a group that fails holds up those behind it.

    What a group has settled of a batch that is retried is not given to it again: its inbox would know the events, but
    they would be counted as handled at every retry. This is kept in memory; after a restart the inbox knows.
    """

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription
        self._handlers = {group.name: BatchHandler(group) for group in subscription.groups}
        # By partition and group: offsets at the head of the partition that the group has settled and another has not.
        self._settled: dict[Partition, defaultdict[str, set[int]]] = {}
        # Of a subscription of several groups: the one whose failure ended the last batch.
        self._failed = ""

    def handle(self, batch: Sequence[ReceivedMessage], stop: StopFlag) -> None:
        """Have every group handle ``batch``; raises as ``BatchHandler.handle`` does.

        Messages that one group postpones go to the groups behind it all the same.
        """
        handlers = self._handlers_of(batch[0])
        if len(handlers) == 1:
            handlers[0][1].handle(batch, stop)
            return
        settled = self._settled.setdefault(_partition(batch[0]), defaultdict(set))
        postponed: list[BatchPostponed] = []
        for name, handler in handlers:
            pending = [message for message in batch if message.offset not in settled[name]]
            left: set[int] = set()
            try:
                if pending:
                    self._check(stop)
                    handler.handle(pending, stop)
            except BatchInterrupted:
                raise
            except BatchPostponed as error:
                postponed.append(error)
                left = _offsets(error.messages)
            except Exception:
                self._failed = name
                raise
            settled[name] |= _offsets(pending) - left
        left = {offset for error in postponed for offset in _offsets(error.messages)}
        for offsets in settled.values():
            offsets &= left
        if postponed:
            first = min(postponed, key=lambda error: error.seconds)
            raise BatchPostponed([message for message in batch if message.offset in left], first.error)

    def handle_or_dead_letter(
        self, message: ReceivedMessage, stop: StopFlag, record: Callable[[str, Exception], None]
    ) -> list[str]:
        """Have each group handle ``message`` by itself, or dead-letter it; returns the groups that dead-lettered it.

        ``record`` gets each such group and its error, see ``BatchHandler.handle_or_dead_letter``.
        """
        settled = self._settled.setdefault(_partition(message), defaultdict(set))
        failed: list[str] = []
        for name, handler in self._handlers_of(message):
            if message.offset in settled[name]:
                continue
            self._check(stop)
            if not handler.handle_or_dead_letter(message, stop, partial(record, name)):
                failed.append(name)
            settled[name].add(message.offset)
        for offsets in settled.values():
            offsets.discard(message.offset)
        return failed

    def allow_dead_letters(self) -> None:
        """Allow as many failures in a row again as the limits say."""
        for handler in self._handlers.values():
            handler.allow_dead_letters()

    def name_cause(self, cause: str) -> str:
        """Return ``cause``, with the group that failed if the subscription has several."""
        return f"{self._failed}: {cause}" if self._failed else cause

    def forget(self, partition: Partition) -> None:
        """Forget what was settled of a revoked partition (its topic with the prefix)."""
        self._settled.pop(partition, None)

    def _handlers_of(self, message: ReceivedMessage) -> list[tuple[str, BatchHandler]]:
        self._failed = ""
        readers = self._subscription.readers(prefixed(message.topic))
        return [(group.name, self._handlers[group.name]) for group in readers]

    @staticmethod
    def _check(stop: StopFlag) -> None:
        if stop:
            raise BatchInterrupted


def _partition(message: ReceivedMessage) -> Partition:
    return prefixed(message.topic), message.partition


def _offsets(messages: Collection[ReceivedMessage]) -> set[int]:
    return {message.offset for message in messages}
