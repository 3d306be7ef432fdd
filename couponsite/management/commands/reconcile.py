from __future__ import annotations

import logging
from argparse import ArgumentParser
from collections.abc import Iterator
from typing import Any

from django.conf import settings
from django.core.management.base import CommandError

from common.processes.lifecycle import StopFlag, check_database, drop_connection, first_line
from common.processes.outages import ServiceUnavailable, is_database_outage
from coupons.reconciliation.reconciler import Reconciled, Reconciler, is_outage
from kafka_bridge.operating.worker_command import DAY_SECONDS, WorkerCommand, whole
from orders.ranking import store
from orders.ranking.days import last_days
from orders.ranking.rebuild import ranking_rebuild

logger = logging.getLogger(__name__)

# The longest list of best sellers that the API gives out.
_MOST_ROWS = 200


class Command(WorkerCommand):
    help = (
        "Compares gate, worker list and outbox with PostgreSQL while everything runs: lost, leaked, waiting. --repair"
        " mends. The exit is 1 while something is wrong; with --repair, while something could not be mended."
    )

    # Neither Redis nor Kafka: with --every it waits for them.
    needs = (check_database,)

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--repair", action="store_true", help="mend what is found")
        parser.add_argument("--every", type=whole(1, DAY_SECONDS), metavar="S", help="seconds between two comparisons")
        parser.add_argument(
            "--patience",
            type=whole(1, DAY_SECONDS),
            metavar="S",
            help="how long a request may be on its way between two places (default RECONCILE_PATIENCE_SECONDS)",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        # Only the process has a heartbeat.
        self.role = "reconciler" if options["every"] else ""
        super().handle(*args, **options)

    def work(self, stop: StopFlag, **options: Any) -> None:
        patience = options["patience"] or settings.RECONCILE_PATIENCE_SECONDS
        if options["every"]:
            self._every(options["every"], patience, options["repair"], stop)
        else:
            self._once(patience, options["repair"], stop)

    def _once(self, patience: float, repair: bool, stop: StopFlag) -> None:
        reconciled = Reconciler(patience, once=True).run(stop, repair=repair)
        for line in reconciled.found.lines(repaired=repair):
            self.stdout.write(line)
        if error := reconciled.outage:
            raise CommandError(f"not everything could be compared, run it again: {first_line(error)}") from error
        for line in _ranking(stop, repair=repair):
            self.stdout.write(line)
        if stop:
            self.stdout.write("told to stop before the end; run it again")
        elif wrong := reconciled.remaining.counts:
            told = ", ".join(f"{number} {name}" for name, number in wrong.items())
            raise CommandError(f"could not be mended: {told}" if repair else f"wrong, --repair mends: {told}")

    def _every(self, seconds: int, patience: float, repair: bool, stop: StopFlag) -> None:
        tick = self.heartbeat.loop()
        comparison: Reconciler | None = None
        while not stop:
            tick()
            try:
                comparison = comparison or Reconciler(patience, once=False)
                reconciled = comparison.run(stop, repair=repair)
                _log(reconciled, repair=repair)
                if reconciled.outage:
                    raise reconciled.outage
                for line in _ranking(stop, repair=repair):
                    logger.info("reconcile: %s", line)
            except Exception as error:
                if is_outage(error):
                    logger.warning("not everything was compared, again in %d s: %s", seconds, first_line(error))
                else:
                    # Nothing is half done that the next comparison would not find.
                    logger.exception("the comparison failed, again in %d s", seconds)
                if is_database_outage(error) or not is_outage(error):
                    # It begins anew: a server that crashed may hand out ids once more.
                    drop_connection()
                    comparison = None
            stop.wait(seconds)


def _log(reconciled: Reconciled, *, repair: bool) -> None:
    if reconciled.found.counts:
        for line in reconciled.found.lines(repaired=repair):
            logger.warning("reconcile: %s", line.strip())
    if repair and reconciled.remaining.counts:
        logger.error("reconcile: could not be mended: %s", reconciled.remaining.counts)


def _ranking(stop: StopFlag, *, repair: bool) -> Iterator[str]:
    """The ranking is read from PostgreSQL while Redis has none: nothing is wrong, it only costs more."""
    if store.best(last_days(store.MAX_DAYS), _MOST_ROWS) is None:
        yield f"ranking: not loaded, or unreadable: {'rebuilt' if repair else '--repair: rebuilt'}"
        if repair:
            try:
                ranking_rebuild(stop=stop)
            except ServiceUnavailable as error:
                # Somebody else is at it.
                logger.info("reconcile: %s", first_line(error))
