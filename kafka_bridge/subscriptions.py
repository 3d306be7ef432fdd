"""Subscriptions: the consumer groups that read topics under one id, with one set of offsets.

Most subscriptions have one group. Groups with equal ids in ``KAFKA_GROUPS`` are one subscription: each batch goes to
its groups in the order of that table, and the offset follows the last. All else stays under the group's own name.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from django.conf import settings

from .registry import ConsumerGroup, groups


@dataclass(frozen=True)
class Subscription:
    """The groups of one id, in the order in which they get a batch.

    Raises ValueError for several groups of which one has no inbox: its effect would be repeated whenever a later group
    fails.
    """

    groups: tuple[ConsumerGroup, ...]

    def __post_init__(self) -> None:
        without = [group.name for group in self.groups if not group.inbox]
        if len(self.groups) > 1 and without:
            raise ValueError(f"{', '.join(without)}: only groups with an inbox may share an id")

    @property
    def name(self) -> str:
        """The group's name; of several the id that they share, without the prefix."""
        first = self.groups[0].name
        return first if len(self.groups) == 1 else str(settings.KAFKA_GROUPS[first])

    @property
    def names(self) -> list[str]:
        """The names of its groups."""
        return [group.name for group in self.groups]

    @property
    def group_id(self) -> str:
        """The id at the broker, with the prefix."""
        return self.groups[0].group_id

    @cached_property
    def topics(self) -> list[str]:
        """The topics of all its groups, sorted, with the prefix."""
        return sorted({topic for group in self.groups for topic in group.topics})

    @property
    def largest_batch(self) -> int | None:
        """The smallest limit of its groups, None if none has one."""
        return min((group.largest_batch for group in self.groups if group.largest_batch), default=None)

    def readers(self, topic: str) -> Sequence[ConsumerGroup]:
        """Return the groups that read ``topic`` (with the prefix)."""
        return self._readers.get(topic, ())

    def reader_names(self, topic: str) -> list[str]:
        """Return the names of ``readers``."""
        return [group.name for group in self.readers(topic)]

    @cached_property
    def _readers(self) -> dict[str, tuple[ConsumerGroup, ...]]:
        topics_of = [(group, group.topics) for group in self.groups]
        return {topic: tuple(group for group, topics in topics_of if topic in topics) for topic in self.topics}

    def __str__(self) -> str:
        return self.name if len(self.groups) == 1 else f"{', '.join(self.names)} ({self.name})"


def sharing(name: str) -> list[str]:
    """Return the names of the registered groups whose id is that of ``name``, itself included, in order.

    A name that is no group, such as that of a worker, shares with none.
    """
    known = groups()
    if name not in known or name not in settings.KAFKA_GROUPS:
        return [name]
    return [other for other in settings.KAFKA_GROUPS if other in known and _id_of(other) == _id_of(name)]


def subscriptions(names: Iterable[str]) -> list[Subscription]:
    """Return the subscriptions of the registered groups ``names``, each once and with all groups of its id."""
    known = groups()
    found = {_id_of(name): sharing(name) for name in names}
    return [Subscription(tuple(known[name] for name in sharers)) for sharers in found.values()]


def subscription_name(name: str) -> str:
    """Return the name of the subscription of a group, the subject of its alerts; that of another name is itself."""
    return name if len(sharing(name)) == 1 else _id_of(name)


def _id_of(name: str) -> str:
    return str(settings.KAFKA_GROUPS[name])
