from __future__ import annotations

import logging
import shlex
from argparse import ArgumentParser
from datetime import datetime
from typing import Any

from django.conf import settings
from django.core.management.base import CommandError
from django.utils.dateparse import parse_datetime

from common.postgres.clock import database_time, isoformat_z
from common.processes.lifecycle import StopFlag, check_database, first_line
from common.processes.outages import is_transient

from ...client import check_kafka, existing_topics
from ...operating.worker_command import WorkerCommand, record_command
from ...registry import former_event_types_of, former_topic_names, prefixed, unprefixed
from ...relaying.republish import PublishInterrupted, Republisher, Selection
from ...routes import topics_of

logger = logging.getLogger(__name__)


class Command(WorkerCommand):
    help = (
        "Publishes again the outbox rows that were published to a topic, after the topic lost messages or was"
        " deleted and recreated. Ids stay the same, so consumers repeat no effect; messages keep their order."
        " The outbox is not changed, and relays may run meanwhile. Events of a topic of KAFKA_FORMER_TOPICS go to the"
        " topics that their types have now."
    )

    needs = (check_database, check_kafka)

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("topic", metavar="TOPIC", help="an event topic, present or former, or a dead-letter topic")
        parser.add_argument("--reason", required=True, metavar="R", help="kept in the audit trail")
        parser.add_argument(
            "--since", type=moment, metavar="T", help="only rows created then or later; ISO 8601 with zone"
        )
        parser.add_argument("--after", type=int, default=0, metavar="ROW", help="continue after this id of the outbox")
        parser.add_argument("--dry-run", action="store_true", help="only count the messages")

    def work(self, stop: StopFlag, **options: Any) -> None:
        topic = _routed(options["topic"])
        targets = _targets(topic)
        target = ", ".join(prefixed(name) for name in targets)
        try:
            # Rows created from now on are published by the relays.
            selection = Selection(topic, before=database_time(), since=options["since"], after=options["after"])
            if options["dry_run"]:
                self.stdout.write(f"{selection.count()} messages would be published again to {target}")
                return
            if missing := sorted({prefixed(name) for name in targets} - existing_topics()):
                raise CommandError(f"there is no topic {missing[0]}: run create_topics first")
            since = None if options["since"] is None else isoformat_z(options["since"])
            after = {"since": since, "afterRow": options["after"]}
            record_command(action="topic.republish", subject=f"topic {topic}", reason=options["reason"], after=after)
        except Exception as error:
            if not _is_outage(error):
                raise
            raise CommandError(first_line(error)) from error
        republisher = Republisher(selection)
        logger.info("republish_topic %s: starts, reason: %s", topic, options["reason"])
        outcome = "done"
        try:
            republisher.run(stop)
            _record_end(republisher, topic, options["reason"])
        except PublishInterrupted:
            pass
        except Exception as error:
            if not _is_outage(error):
                raise
            raise CommandError(f"{first_line(error)}; {_resume_hint(republisher, options)}") from error
        finally:
            logger.info(
                "republish_topic %s: %d messages published again, %d refused, up to row %d; reason: %s",
                topic, republisher.published, republisher.refused, republisher.last_id, options["reason"],
            )  # fmt: skip
        if stop:
            outcome = _resume_hint(republisher, options)
        refused = f", {republisher.refused} refused by the broker (the log names them)" if republisher.refused else ""
        self.stdout.write(f"{republisher.published} messages published again to {target}{refused}; {outcome}")


def moment(text: str) -> datetime:
    """An argparse type: an aware time in ISO 8601."""
    parsed = parse_datetime(text)
    if parsed is None or parsed.tzinfo is None:
        raise ValueError(text)
    return parsed


def _routed(name: str) -> str:
    """Return the topic as the routes name it; ``name`` may have the prefix."""
    known = topics_of(settings.KAFKA_ROUTES) | former_topic_names()
    for topic in (name, unprefixed(name)):
        if topic in known:
            return topic
    raise CommandError(f"KAFKA_ROUTES names no topic {name}; known: {', '.join(sorted(known))}")


def _targets(topic: str) -> list[str]:
    """Return the topics that events of ``topic`` go to: itself, or those that the types of a former topic have now."""
    if topic in topics_of(settings.KAFKA_ROUTES):
        return [topic]
    return sorted({settings.KAFKA_ROUTES[event_type].topic for event_type in former_event_types_of(topic)})


def _record_end(republisher: Republisher, topic: str, reason: str) -> None:
    """Record how far it came; an interruption leaves the record of its start, and the counts in the log."""
    counts = {"published": republisher.published, "refused": republisher.refused, "lastRow": republisher.last_id}
    record_command(action="topic.republish_end", subject=f"topic {topic}", reason=reason, after=counts)


def _resume_hint(republisher: Republisher, options: dict[str, Any]) -> str:
    since = f" --since {options['since'].isoformat()}" if options["since"] else ""
    return (
        f"to continue: republish_topic {options['topic']}{since} --after {republisher.last_id}"
        f" --reason {shlex.quote(options['reason'])}"
    )


def _is_outage(error: Exception) -> bool:
    """Whether a service is down, or the topic accepts no messages."""
    return is_transient(error)
