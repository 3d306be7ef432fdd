"""The command that runs consumer groups, for a project to subclass under a name of its own."""

from __future__ import annotations

import logging
import threading
from argparse import ArgumentParser
from queue import SimpleQueue
from typing import Any

from django.conf import settings
from django.core.management.base import CommandError

from common.processes.lifecycle import StopFlag

from ..operating.pause_watch import PauseWatch
from ..operating.worker_command import MOST_AT_ONCE, WorkerCommand, whole
from ..registry import groups
from ..routes import MOST_CONSUMERS
from ..subscriptions import Subscription, subscriptions
from .consumer import GroupConsumer

logger = logging.getLogger(__name__)


class ConsumeCommand(WorkerCommand):
    """Runs the registered consumer groups until a signal stops them or a thread fails.

    Each subscription has its own threads.
    """

    help = (
        "Runs consumer groups: all registered groups, or those named by --group. Groups that share an id in"
        " KAFKA_GROUPS are one subscription: naming one of them runs all."
    )

    role = "consumer"

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--group", action="append", metavar="G", help="repeatable; default: every group")
        parser.add_argument(
            "--concurrency",
            type=whole(1, MOST_CONSUMERS),
            metavar="N",
            help="threads per group, or per id that groups share (default CONSUMER_CONCURRENCY)",
        )
        parser.add_argument(
            "--batch-size", type=whole(1, MOST_AT_ONCE), metavar="N", help="default CONSUMER_BATCH_SIZE"
        )
        parser.add_argument(
            "--until-idle",
            action="store_true",
            help="end after every partition that is not paused has had no message left for a second",
        )

    def work(self, stop: StopFlag, **options: Any) -> None:
        ended = SimpleQueue[ConsumerThread]()
        selected = self._selected(options["group"])
        pauses = self.watch_pauses(
            [name for subscription in selected for name in subscription.names],
            first=stop if options["until_idle"] else None,
        )
        threads = [
            self._create_thread(subscription, number, stop, ended, pauses, options)
            for subscription in selected
            for number in range(options["concurrency"] or _concurrency(subscription))
        ]
        for thread in threads:
            thread.start()
        # The main thread only waits, because signal handlers run in it.
        for _ in threads:
            if ended.get().error:
                stop.request()
        if failed := next((thread for thread in threads if thread.error), None):
            raise CommandError(f"{failed.name} died: {failed.error!r}")

    def _create_thread(
        self,
        subscription: Subscription,
        number: int,
        stop: StopFlag,
        ended: SimpleQueue[ConsumerThread],
        pauses: PauseWatch,
        options: dict[str, Any],
    ) -> ConsumerThread:
        tick = self.heartbeat.loop()
        consumer = GroupConsumer(*subscription.groups, batch_size=options["batch_size"], tick=tick, pauses=pauses)
        self.heartbeat.watch_consumer(consumer.report)
        # A batch that calls a provider takes minutes: it asks the flag meanwhile.
        name = f"{subscription.name}-{number}"
        return ConsumerThread(consumer, name, stop.watched(tick), ended, until_idle=options["until_idle"])

    def _selected(self, names: list[str] | None) -> list[Subscription]:
        known = groups()
        for name in names or ():
            if name not in known:
                raise CommandError(f"there is no group {name!r}; known: {', '.join(sorted(known))}")
        selected = subscriptions(names or sorted(known))
        for subscription in selected:
            if len(subscription.groups) > 1:
                logger.info(
                    "%s run as one subscription: they share the id %s in KAFKA_GROUPS",
                    ", ".join(subscription.names), subscription.name,
                )  # fmt: skip
        return selected


def _concurrency(subscription: Subscription) -> int:
    """Return the threads that CONSUMER_CONCURRENCY wants; of groups that share an id the greatest number counts."""
    return max(settings.CONSUMER_CONCURRENCY.get(name, 1) for name in subscription.names)


class ConsumerThread(threading.Thread):
    """A thread that runs one consumer of a group; an error that ends its loop is kept in ``error``.

    It puts itself into ``ended`` when it ends.
    """

    def __init__(
        self,
        consumer: GroupConsumer,
        name: str,
        stop: StopFlag,
        ended: SimpleQueue[ConsumerThread],
        *,
        until_idle: bool,
    ) -> None:
        super().__init__(name=name)
        self._consumer = consumer
        self._stop_flag = stop
        self._ended = ended
        self._until_idle = until_idle
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self._consumer.run(self._stop_flag, until_idle=self._until_idle)
        except Exception as error:
            logger.exception("%s died", self.name)
            self.error = error
        finally:
            self._ended.put(self)
