"""The group ``dead-letters``: it reads the dead-letter topics, keeps foreign messages as rows and opens the alert.

A message there is ours if its headers name position and group of a row in ``kafka_bridge_deadletter``. Any other is
foreign: it becomes a dead letter of the group ``foreign``, whose position is the one on the dead-letter topic, so that
the same message read again is the same row.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import timedelta
from typing import NamedTuple

from django.conf import settings
from django.db import connection, transaction

from common.bigint import MAX_BIGINT
from common.postgres import arrays
from common.postgres.clock import database_time
from common.processes.lifecycle import first_line
from common.processes.outages import is_transient

from .. import metrics
from ..errors import BridgeError
from ..operating.evaluation import judge_rule
from ..registry import ConsumerGroup, ReceivedMessage, Rejected, prefixed, register_group
from ..routes import Route
from .dead_letters import FOREIGN, RELAY, write_dead_letters

logger = logging.getLogger(__name__)

NAME = "dead-letters"
# The rule that counts the open dead letters of all groups; the evaluator judges it too, and alone ends its alert.
ALERT_RULE = "dead-letters"
# A flood on a dead-letter topic must not fill the table: past so many open foreign rows the messages stay on the topic
# only, which keeps everything.
MOST_FOREIGN = 10_000

# Closed rows are deleted after their retention, and a row may be closed before the relay publishes its copy. A day is
# longer than requests are accepted while the relay is behind (OUTBOX_MAX_AGE_SECONDS).
_PUBLISHED_LATE = timedelta(days=1)
_MAX_PARTITION = 2**31 - 1

_KNOWN = """
    SELECT DISTINCT number
    FROM unnest(%s::int[], %s::text[], %s::text[], %s::int[], %s::bigint[])
         AS copy (number, consumer_group, topic, partition, "offset")
    JOIN kafka_bridge_deadletter AS letter USING (consumer_group, topic, partition, "offset")
"""
_COUNT_FOREIGN = """
    SELECT count(*) FROM (
        SELECT FROM kafka_bridge_deadletter WHERE consumer_group = %s AND closed_at IS NULL LIMIT %s
    ) AS open
"""


class ForeignMessage(BridgeError):
    """A message on a dead-letter topic that no consumer group of this service wrote."""


class Origin(NamedTuple):
    """Which dead letters a copy may belong to: position, and names of groups."""

    groups: tuple[str, ...]
    topic: str
    partition: int
    offset: int


def register() -> None:
    """Register the group, if the settings have an id for it; called once, when the app is ready."""
    if NAME in settings.KAFKA_GROUPS:
        register_group(DEAD_LETTERS)


def dead_letter_topics() -> set[str]:
    """Return the dead-letter topics of all routes, without the prefix; several topics may share one."""
    routes: dict[str, Route] = settings.KAFKA_ROUTES
    return {route.dead_letter_topic for route in routes.values()}


def watch(messages: Sequence[ReceivedMessage]) -> None:
    """Keep the foreign ones of ``messages`` as rows and open the alert of dead letters if its condition is true.

    Runs in the transaction of the batch. History is neither kept nor alerted: a message whose row may have been deleted
    after its retention.
    """
    unknown = _without_row(messages)
    if unknown:
        newest_history = _newest_history_ms()
        recent = [message for message in unknown if message.timestamp > newest_history]
        if history := len(unknown) - len(recent):
            logger.info("%s: %d messages without a row are older than the retention, nothing to do", NAME, history)
        _keep(recent)
    _open_alert()


def origin_of(message: ReceivedMessage) -> Origin | None:
    """Read the ``x-original-*`` and ``x-consumer-group`` headers of a copy; None if they name no row of ours."""
    try:
        topic, group_id = ((message.header(name) or b"").decode() for name in ("x-original-topic", "x-consumer-group"))
        partition, offset = (
            int((message.header(f"x-original-{name}") or b"").decode("ascii")) for name in ("partition", "offset")
        )
    except ValueError:
        return None
    prefix = prefixed("")
    if not topic.startswith(prefix) or "\0" in topic or abs(partition) > _MAX_PARTITION or abs(offset) > MAX_BIGINT:
        return None
    ids = {name: prefixed(known_id) for name, known_id in settings.KAFKA_GROUPS.items()} | {RELAY: RELAY}
    # None has the id if the copy is older than a change of KAFKA_GROUPS; several have it if they share it.
    groups = tuple(name for name, known_id in ids.items() if known_id == group_id) or tuple(ids)
    return Origin(groups, topic.removeprefix(prefix), partition, offset)


def _without_row(messages: Sequence[ReceivedMessage]) -> list[ReceivedMessage]:
    copies = [
        (number, group, origin)
        for number, message in enumerate(messages)
        if (origin := origin_of(message)) is not None
        for group in origin.groups
    ]
    known: set[int] = set()
    if copies:
        with connection.cursor() as cursor:
            cursor.execute(
                _KNOWN,
                [
                    arrays.numbers([number for number, _, _ in copies]),
                    arrays.texts([group for _, group, _ in copies]),
                    arrays.texts([origin.topic for _, _, origin in copies]),
                    arrays.numbers([origin.partition for _, _, origin in copies]),
                    arrays.numbers([origin.offset for _, _, origin in copies]),
                ],
            )
            known = {number for (number,) in cursor.fetchall()}
    return [message for number, message in enumerate(messages) if number not in known]


def _newest_history_ms() -> float:
    retention = timedelta(days=settings.DEAD_LETTER_RETENTION_DAYS)
    return (database_time() - retention + _PUBLISHED_LATE).timestamp() * 1000


def _keep(messages: Sequence[ReceivedMessage]) -> None:
    if not messages:
        return
    with connection.cursor() as cursor:
        cursor.execute(_COUNT_FOREIGN, [FOREIGN, MOST_FOREIGN])
        (kept,) = cursor.fetchone() or (0,)
    fitting, surplus = messages[: MOST_FOREIGN - kept], messages[MOST_FOREIGN - kept :]
    write_dead_letters(FOREIGN, FOREIGN, [Rejected(message, _error_of(message)) for message in fitting], publish=False)
    if surplus:
        metrics.PASSED_OVER.labels(NAME).inc(len(surplus))
        logger.error(
            "%s: %d foreign messages from %s on are not kept as rows: %d are open; stop their producer",
            NAME, len(surplus), surplus[0], MOST_FOREIGN,
        )  # fmt: skip


def _error_of(message: ReceivedMessage) -> ForeignMessage:
    """Quote the error that the message itself names, if it names one."""
    named = (message.header("x-error-class"), message.header("x-error-message"))
    error = ": ".join(value.decode("utf-8", "replace") for value in named if value)
    return ForeignMessage(f"no group of this service wrote it{f'; it says {error}' if error else ''}")


def _open_alert() -> None:
    try:
        with transaction.atomic():
            judge_rule(ALERT_RULE)
    except Exception as error:
        if is_transient(error):
            raise
        # The rows matter more; the evaluator judges the rule again within seconds.
        logger.error("%s: alert %s not judged: %s", NAME, ALERT_RULE, first_line(error))


DEAD_LETTERS = ConsumerGroup(
    name=NAME,
    event_types=(),
    read_topics=dead_letter_topics,
    decode=lambda message: message,
    handle=watch,
    # A message that fails is counted and passed: a dead letter of a dead letter would never end.
    log_only=True,
)
