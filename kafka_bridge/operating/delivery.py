"""Why a message has not reached a consumer group: the one cause, found in the tables of the service alone.

It asks neither Kafka nor Redis: relays and consumers report what they hold in their leases and heartbeats.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from common.postgres.clock import isoformat_z

from ..lag import HeldPartition
from ..models import Alert, DeadLetter, GroupPause, HeldMessage, ProcessedEvent
from ..outbox.message_trace import MOST_COUNTED, OutboxTrace
from ..registry import ConsumerGroup, prefixed
from ..subscriptions import sharing, subscription_name
from .group_pauses import RELAY_NAME, pauses
from .processes import ProcessState, RunningProcess, running_processes

# A message that is younger is on its way, and nothing is wrong.
ON_ITS_WAY_SECONDS = 2.0
# After a consumer was killed its partitions have a new one by then.
_REBALANCE_SECONDS = 15.0
_MOST_ALERTS = 100
_MOST_LETTERS = 5


class DeliveryCause(StrEnum):
    """Why a message does not arrive."""

    PAUSED = "paused"
    RELAY_DOWN = "relay-down"
    KAFKA_AWAY = "kafka-away"
    OUTBOX_BEHIND = "outbox-behind"
    HELD_BY_OPERATOR = "held-by-operator"
    TOPIC_MISSING = "topic-missing"
    TOPIC_REFUSES = "topic-refuses"
    HELD_FOR_KEY = "held-for-key"
    SENT_AGAIN = "sent-again"
    TOPIC_FORMER = "topic-former"
    GROUP_DOWN = "group-down"
    CONSUMER_HANGS = "consumer-hangs"
    PARTITION_FREE = "partition-free"
    RETRYING = "retrying"
    BEHIND = "behind"
    LOST = "lost"
    DEAD_LETTER = "dead-letter"


@dataclass(frozen=True, slots=True)
class Problem:
    """A cause and what is known of it, in one sentence. ``group`` is empty where no consumer group is concerned."""

    cause: StrEnum
    summary: str
    message: OutboxTrace | None = None
    group: str = ""
    # Of whatever a remedy needs besides: by name.
    details: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The processes, the open alerts and the pauses, read once for a page."""

    processes: Sequence[RunningProcess]
    # Summary by rule.
    alerts: Mapping[str, str]
    pauses: Sequence[GroupPause] = ()

    def pause(self, name: str, topic: str | None = None, partition: int | None = None) -> GroupPause | None:
        """Return the pause of a group or worker, or of a partition of it (``topic`` with the prefix), None if none."""
        wanted = [(shared, *part) for shared in sharing(name) for part in ((None, None), (topic, partition))]
        found = (row for row in self.pauses if (row.consumer_group, row.topic, row.partition) in wanted)
        return next(found, None)

    def running(self, role: str) -> list[RunningProcess]:
        """Return the living processes of a role."""
        return [process for process in self.processes if is_alive(process) and process.role == role]

    def alert(self, name: str) -> str | None:
        """Return the summary of an open alert of the rule ``name``, of any subject; None if none is open."""
        found = (text for rule, text in self.alerts.items() if rule == name or rule.startswith(f"{name}-"))
        return next(found, None)


def read_surroundings() -> Surroundings:
    """Read the processes, the open alerts and the pauses, in three queries."""
    alerts = (
        Alert.objects.filter(ended_at=None)
        .order_by("severity", "started_at")
        .values_list("rule", "summary")[:_MOST_ALERTS]
    )
    return Surroundings(running_processes(), dict(alerts), pauses())


def is_alive(process: RunningProcess) -> bool:
    """Whether a process reports, though a loop of it may hang."""
    return process.state is not ProcessState.SILENT


def paused_problem(pause: GroupPause, message: OutboxTrace | None) -> Problem:
    """Return the problem of a message that waits for the end of ``pause``."""
    return Problem(
        DeliveryCause.PAUSED,
        f"{pause} is paused by {pause.actor} since {isoformat_z(pause.created_at)}: {pause.reason}.",
        message,
        pause.consumer_group,
        {"partition": "" if pause.topic is None else f"{pause.topic}:{pause.partition}"},
    )


def publishing_problem(message: OutboxTrace, surroundings: Surroundings) -> Problem | None:
    """Return why the relay has not published ``message``; None if it has, or is about to."""
    if message.is_published:
        return None
    if (pause := surroundings.pause(RELAY_NAME)) is not None:
        return paused_problem(pause, message)
    if message.held is not None and (problem := _holding_problem(message)) is not None:
        return problem
    if not message.has_relay:
        # A relay that is alive takes the shards of a dead one within seconds.
        silent = [process for process in surroundings.processes if process.role == "relay" and not is_alive(process)]
        last = min(silent, key=lambda process: process.silent_seconds, default=None)
        seen = f" The last one, {last}, was seen {last.silent_seconds:.0f} s ago." if last else ""
        return Problem(
            DeliveryCause.RELAY_DOWN,
            f"No running relay has shard {message.shard} of the outbox: row {message.row_id} waits.{seen}",
            message,
        )
    if message.held is not None:
        return None
    if (alert := surroundings.alert("broker-down")) is not None:
        return Problem(DeliveryCause.KAFKA_AWAY, f"Row {message.row_id} waits for Kafka: {alert}.", message)
    if message.age_seconds > ON_ITS_WAY_SECONDS:
        before = message.rows_before()
        more = " or more" if before >= MOST_COUNTED else ""
        return Problem(
            DeliveryCause.OUTBOX_BEHIND,
            f"Row {message.row_id} has waited {message.age_seconds:.0f} s for its relay; {before}{more} rows of its"
            f" shard {message.shard} come first.",
            message,
        )
    return None


def _holding_problem(message: OutboxTrace) -> Problem | None:
    assert message.held is not None
    held = message.held
    if message.operator_hold is not None:
        what = f"topic {message.topic}" if message.holds_topic else f"key {message.key_text} of topic {message.topic}"
        return Problem(
            DeliveryCause.HELD_BY_OPERATOR,
            f"An operator holds the {what}: {message.operator_hold}.",
            message,
        )
    if not message.has_relay or held.reason == HeldMessage.Reason.AGAIN:
        if message.has_relay and message.age_seconds > ON_ITS_WAY_SECONDS:
            return Problem(
                DeliveryCause.SENT_AGAIN, f"Row {message.row_id} is to be sent again; its relay does it next.", message
            )
        return None
    if held.reason == HeldMessage.Reason.KEY:
        return Problem(
            DeliveryCause.HELD_FOR_KEY,
            f"Row {message.row_id} waits behind earlier rows of key {message.key_text}, which are sent first.",
            message,
        )
    error = held.last_error or _first_error(message.topic)
    return Problem(
        DeliveryCause.TOPIC_MISSING if "run create_topics" in error else DeliveryCause.TOPIC_REFUSES,
        f"Topic {prefixed(message.topic)} accepts no messages: {error or 'the relay has not tried yet'}.",
        message,
    )


def _first_error(topic: str) -> str:
    """Return the error of the last attempt to send a row of ``topic``: it is kept with its first held row."""
    first = HeldMessage.objects.filter(topic=topic).order_by("message_id").values_list("last_error", flat=True).first()
    return first or ""


def reading_problem(
    message: OutboxTrace, group: ConsumerGroup, surroundings: Surroundings, *, lost_after_seconds: float
) -> Problem | None:
    """Return why ``group`` has not handled the published ``message``; None if it is about to.

    ``lost_after_seconds``: the age from which a message of a partition without lag counts as lost by its topic.
    """
    topic, partition = prefixed(message.topic), message.partition

    def problem(cause: DeliveryCause, summary: str, **details: str) -> Problem:
        return Problem(cause, summary, message, group.name, details)

    if (pause := surroundings.pause(group.name, topic, partition)) is not None:
        return paused_problem(pause, message)
    if topic not in group.topics:
        return problem(
            DeliveryCause.TOPIC_FORMER,
            f"It was published to {topic}, which KAFKA_ROUTES no longer names for {message.event_type}: no consumer of"
            f" the group {group.name} reads it.",
        )
    running = [process for process in surroundings.processes if group.name in process.groups]
    if not any(map(is_alive, running)):
        last = min(running, key=lambda process: process.silent_seconds, default=None)
        seen = f" The last one, {last}, was seen {last.silent_seconds:.0f} s ago." if last else ""
        return problem(DeliveryCause.GROUP_DOWN, f"No running process consumes the group {group.name}.{seen}")
    where = f"{topic} partition {partition}"
    holders = [] if partition is None else _holders(running, group.name, topic, partition)
    if not holders:
        if message.age_seconds <= _REBALANCE_SECONDS:
            return None
        return problem(DeliveryCause.PARTITION_FREE, f"No running consumer of the group {group.name} has {where}.")
    process, held = holders[0]
    if process.state is ProcessState.HANGING:
        return problem(
            DeliveryCause.CONSUMER_HANGS,
            f"{process} has {where} and has made no pass for {process.idle_seconds:.0f} s.",
            pid=str(process.pid),
        )
    # For two seconds after a resume a consumer still says that it is paused.
    if held.state not in ("ok", "paused"):
        why = surroundings.alert(f"waiting-{subscription_name(group.name)}") or "its log says why"
        return problem(
            DeliveryCause.RETRYING, f"{process} has tried {where} again for {held.state_seconds:.0f} s: {why}."
        )
    if message.age_seconds <= ON_ITS_WAY_SECONDS:
        return None
    if held.lag != 0:
        lag = "an unknown number of" if held.lag is None else held.lag
        return problem(DeliveryCause.BEHIND, f"{process} is {lag} messages behind on {where}.")
    if message.age_seconds > lost_after_seconds:
        return problem(
            DeliveryCause.LOST,
            f"{process} has read {where} to its end, and row {message.row_id} was published: its topic has lost it.",
        )
    return None


def _holders(
    running: Sequence[RunningProcess], group: str, topic: str, partition: int
) -> list[tuple[RunningProcess, HeldPartition]]:
    wanted = (group, topic, partition)
    return [
        (process, held)
        for process in running
        if is_alive(process)
        for held in process.partitions
        if (held.group, held.topic, held.partition) == wanted
    ]


@dataclass(frozen=True, slots=True)
class Delivery:
    """An event and one of its consumer groups. ``handled_at`` None: not handled, or its inbox row was pruned."""

    group: str
    handled_at: datetime | None
    letter: DeadLetter | None
    problem: Problem | None


def deliveries(
    event_id: UUID,
    message: OutboxTrace | None,
    groups: Sequence[ConsumerGroup],
    surroundings: Surroundings,
    *,
    lost_after_seconds: float,
) -> list[Delivery]:
    """Return the state of an event in each of ``groups``, which have an inbox; in two queries.

    ``message`` None: its row was pruned, and with it what is known of its way. A message that is not published has that
    problem in every group.
    """
    handled = handled_at(event_id, [group.name for group in groups])
    letters = {letter.consumer_group: letter for letter in dead_letters_of(event_id)}
    unpublished = None if message is None else publishing_problem(message, surroundings)
    found = []
    for group in groups:
        problem = None
        letter = letters.get(group.name)
        if group.name not in handled and letter is None:
            problem = unpublished
            if message is not None and message.is_published:
                problem = reading_problem(message, group, surroundings, lost_after_seconds=lost_after_seconds)
        elif letter is not None and letter.closed_at is None:
            problem = Problem(
                DeliveryCause.DEAD_LETTER,
                f"The group {group.name} could not handle it ({letter.error_class}): dead letter {letter.id}.",
                message,
                group.name,
            )
        found.append(Delivery(group.name, handled.get(group.name), letter, problem))
    return found


def handled_at(event_id: UUID, group_names: Collection[str]) -> dict[str, datetime]:
    """Return when each group handled the event, by group; groups that have not are left out."""
    rows = ProcessedEvent.objects.filter(consumer_group__in=group_names, event_id=event_id)
    return dict(rows.values_list("consumer_group", "processed_at"))


def dead_letters_of(event_id: UUID) -> list[DeadLetter]:
    """Return the newest dead letters of an event, without their bytes."""
    rows = DeadLetter.objects.filter(event_id=event_id).defer("key", "payload", "headers")
    return list(rows.order_by("-id")[:_MOST_LETTERS])


def dead_letters_at(group_names: Collection[str], topic: str, partition: int, offset: int) -> list[DeadLetter]:
    """Return the dead letters of groups for the message at a position, without their bytes."""
    rows = DeadLetter.objects.filter(
        consumer_group__in=group_names, topic=topic, partition=partition, offset=offset
    ).defer("key", "payload", "headers")
    return list(rows[:_MOST_LETTERS])
