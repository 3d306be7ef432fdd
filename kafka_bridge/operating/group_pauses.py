"""Pausing and resuming of consumer groups, of their partitions, and of workers such as the relay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from django.conf import settings
from django.db import transaction

from common.postgres.clock import isoformat_z

from ..errors import UnknownTarget
from ..lag import PartitionLag, lag_by_partition
from ..models import GroupPause, target_name
from ..registry import ConsumerGroup, groups, prefixed
from ..routes import Route
from ..subscriptions import sharing
from .audit import record_action

# The relay, as pauses name it.
RELAY_NAME = "relay"
# What a page or a line shows at most.
MOST_SHOWN = 100


class PausableWorker(NamedTuple):
    """Processes besides the consumers that can be paused: what they are, for pages, and their role."""

    what: str
    role: str


_workers = {RELAY_NAME: PausableWorker("the relays of the outbox", "relay")}


class PauseTarget(NamedTuple):
    """A group or worker by its name, or a partition of a group; ``topic`` has the prefix."""

    name: str
    topic: str | None = None
    partition: int | None = None

    def __str__(self) -> str:
        return target_name(*self)


def register_worker(name: str, worker: PausableWorker) -> None:
    """Register processes besides the consumers that can be paused under ``name``."""
    _workers[name] = worker


def workers() -> dict[str, PausableWorker]:
    """Return what can be paused besides consumer groups, by name."""
    return dict(_workers)


def find_target(name: str, topic: str | None = None, partition: int | None = None) -> PauseTarget:
    """Return the target of these names: the group's name or its id, id and topic with or without the prefix.

    ``topic`` and ``partition`` None: the whole group. Raises UnknownTarget, also for an id that may be that of two.
    """
    group = None if name in _workers else _find_group(name)
    if topic is None or partition is None:
        return PauseTarget(name if group is None else group.name)
    if group is None:
        raise UnknownTarget(f"{name} has no partitions: pause it as a whole")
    numbers = partitions_of(group, lag_by_partition())
    full_name = topic if topic in numbers else prefixed(topic)
    if full_name not in numbers:
        raise UnknownTarget(f"{group.name} reads no topic {topic!r}; it reads: {', '.join(sorted(numbers))}")
    if not 0 <= partition < numbers[full_name]:
        raise UnknownTarget(f"{full_name} has no partition {partition}; it has 0 to {numbers[full_name] - 1}")
    return PauseTarget(group.name, full_name, partition)


def _find_group(name: str) -> ConsumerGroup:
    known = groups()
    if group := known.get(name):
        return group
    # The broker has ids with the prefix, logs and alerts write them without.
    found = [group for group in known.values() if name in (group.group_id, settings.KAFKA_GROUPS[group.name])]
    if not found:
        raise UnknownTarget(f"there is no group {name!r}; known: {', '.join([*sorted(known), *sorted(_workers)])}")
    if len({group.group_id for group in found}) > 1:
        names = " and of ".join(sorted(group.name for group in found))
        raise UnknownTarget(f"{name!r} is the id of {names}, with the prefix and without: use the name of a group")
    return found[0]


def partitions_of(group: ConsumerGroup, lags: Sequence[PartitionLag]) -> dict[str, int]:
    """Return the number of partitions of each topic of ``group``: by the routes, or more if ``lags`` has more."""
    routes: Mapping[str, Route] = settings.KAFKA_ROUTES
    numbers = dict.fromkeys(group.topics, 0)
    known = [(route.topic, route.partitions) for route in routes.values()]
    known += [(route.dead_letter_topic, route.dead_letter_partitions) for route in routes.values()]
    known_by_name = [(prefixed(topic), number) for topic, number in known]
    held = [(lag.place.topic, lag.place.partition + 1) for lag in lags if lag.place.group == group.name]
    for topic, number in known_by_name + held:
        if topic in numbers:
            numbers[topic] = max(numbers[topic], number)
    return numbers


def stopped_with(target: PauseTarget) -> list[PauseTarget]:
    """Return what stands still while ``target`` does, itself first: the same of the groups that share its id.

    They have one consumer: it cannot read on for some of them.
    """
    known = groups()
    others = [name for name in sharing(target.name) if name != target.name]
    return [
        target,
        *(target._replace(name=name) for name in others if target.topic is None or target.topic in known[name].topics),
    ]


def describe_stopped(target: PauseTarget) -> str:
    """Return the name of ``target``, and the groups that stand still with it."""
    others = [str(other) for other in stopped_with(target)[1:]]
    return f"{target} (with {', '.join(others)}: they share an id)" if others else str(target)


def pause(target: PauseTarget, *, actor: str, reason: str) -> tuple[GroupPause, bool]:
    """Pause ``target`` and what is stopped with it; returns its pause and whether one of the pauses is new.

    A pause that is there already stays as it is. Each group has a pause of its own, so that they stay paused if they
    get different ids.
    """
    pauses_made: dict[PauseTarget, GroupPause] = {}
    is_new = False
    with transaction.atomic():
        for stopped in sorted(stopped_with(target)):
            pauses_made[stopped], is_made = GroupPause.objects.get_or_create(
                consumer_group=stopped.name,
                topic=stopped.topic,
                partition=stopped.partition,
                defaults={"reason": reason[:500], "actor": actor[:150]},
            )
            if is_made:
                is_new = True
                record_action(
                    actor=actor, action="group.pause", subject=str(stopped), reason=reason, after={"paused": True}
                )
        found = pauses_made[target]
        found.refresh_from_db()
    return found, is_new


def resume(target: PauseTarget, *, actor: str, reason: str) -> bool:
    """End the pause of exactly ``target`` and of what is stopped with it; returns whether one was paused.

    A group and its partitions are paused and resumed each for themselves: see ``pauses_of`` for what remains.
    """
    was_paused = False
    with transaction.atomic():
        for stopped in sorted(stopped_with(target)):
            rows = GroupPause.objects.select_for_update().filter(
                consumer_group=stopped.name, topic=stopped.topic, partition=stopped.partition
            )
            found = rows.first()
            if found is None:
                continue
            was_paused = True
            before = {"by": found.actor, "since": isoformat_z(found.created_at), "reason": found.reason}
            found.delete()
            record_action(actor=actor, action="group.resume", subject=str(stopped), reason=reason, before=before)
    return was_paused


def pauses() -> list[GroupPause]:
    """Return the pauses, the oldest first; at most ``MOST_SHOWN``."""
    return list(GroupPause.objects.order_by("created_at", "pk")[:MOST_SHOWN])


def pauses_of(name: str) -> list[GroupPause]:
    """Return the pauses of a group or worker and of its partitions, the oldest first; at most ``MOST_SHOWN``.

    Those of groups that share its id stop it too.
    """
    return list(GroupPause.objects.filter(consumer_group__in=sharing(name)).order_by("created_at", "pk")[:MOST_SHOWN])
