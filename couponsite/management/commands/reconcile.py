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
from kafka_bridge.operating.alarm_threads import alarm_threads
from kafka_bridge.operating.worker_command import DAY_SECONDS, WorkerCommand, record_command, whole
from orders.ranking import store
from orders.ranking.days import last_days
from orders.ranking.rebuild import ranking_rebuild
from orders.reconciliation import EffectsCheck

logger = logging.getLogger(__name__)

# The largest limit of the best sellers in the API.
_MAX_ROWS = 200


class Command(WorkerCommand):
    help = (
        "Compares gates, Redis queue, outbox and effects with PostgreSQL while the service runs, and lists differences."
        " --repair repairs them. The exit code is 1 if there are differences; with --repair, if some could not be"
        " repaired. With --every it also stands by to judge the alarms."
    )

    # Redis and Kafka are not required at start: with --every the process retries until they answer.
    needs = (check_database,)

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--repair", action="store_true", help="repair the differences found")
        parser.add_argument("--every", type=whole(1, DAY_SECONDS), metavar="S", help="seconds between two comparisons")
        parser.add_argument(
            "--patience",
            type=whole(1, DAY_SECONDS),
            metavar="S",
            help="how long a request may be in transit before it counts as lost (default RECONCILE_PATIENCE_SECONDS)",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        # Only the long-running process has a heartbeat.
        self.role = "reconciler" if options["every"] else ""
        super().handle(*args, **options)

    def work(self, stop: StopFlag, **options: Any) -> None:
        patience = options["patience"] or settings.RECONCILE_PATIENCE_SECONDS
        if options["every"]:
            # The standby of the housekeeper.
            with alarm_threads(stop, self.heartbeat):
                self._every(options["every"], patience, options["repair"], stop)
        else:
            self._once(patience, options["repair"], stop)

    def _once(self, patience: float, repair: bool, stop: StopFlag) -> None:
        if repair:
            record_command(action="service.repair", subject="reconcile", after={"patienceSeconds": patience})
        reconciled = _reconciler(patience, once=True).run(stop, repair=repair)
        for line in reconciled.found.lines(repaired=repair):
            self.stdout.write(line)
        if error := reconciled.outage:
            raise CommandError(f"not everything could be compared, run it again: {first_line(error)}") from error
        for line in _ranking(stop, repair=repair):
            self.stdout.write(line)
        if stop:
            self.stdout.write("stopped before the end; run it again")
        elif wrong := reconciled.remaining.counts:
            summary = ", ".join(f"{number} {name}" for name, number in wrong.items())
            raise CommandError(f"could not be repaired: {summary}" if repair else f"run with --repair: {summary}")

    def _every(self, seconds: int, patience: float, repair: bool, stop: StopFlag) -> None:
        stop = stop.watched(self.heartbeat.loop())
        reconciler: Reconciler | None = None
        while not stop:
            try:
                reconciler = reconciler or _reconciler(patience, once=False)
                reconciled = reconciler.run(stop, repair=repair)
                _log(reconciled, repair=repair)
                if reconciled.outage:
                    raise reconciled.outage
                for line in _ranking(stop, repair=repair):
                    logger.info("reconcile: %s", line)
            except Exception as error:
                if is_outage(error):
                    logger.warning("not everything was compared, again in %d s: %s", seconds, first_line(error))
                else:
                    # The next comparison finds whatever this one left incomplete.
                    logger.exception("the comparison failed, again in %d s", seconds)
                if is_database_outage(error) or not is_outage(error):
                    # Start over with a new Reconciler: a crashed PostgreSQL may assign the same ids again.
                    drop_connection()
                    reconciler = None
            stop.wait(seconds)


def _reconciler(patience: float, *, once: bool) -> Reconciler:
    return Reconciler(patience, once=once, others=[EffectsCheck(patience)])


def _log(reconciled: Reconciled, *, repair: bool) -> None:
    if reconciled.found.counts:
        for line in reconciled.found.lines(repaired=repair):
            logger.warning("reconcile: %s", line.strip())
    if repair and reconciled.remaining.counts:
        logger.error("reconcile: could not be repaired: %s", reconciled.remaining.counts)


def _ranking(stop: StopFlag, *, repair: bool) -> Iterator[str]:
    """Report an unloaded ranking, and rebuild it with ``repair``. Not a difference: PostgreSQL serves the reads."""
    if store.best(last_days(store.MAX_DAYS), _MAX_ROWS) is None:
        yield f"ranking: not loaded, or unreadable: {'rebuilt' if repair else '--repair: rebuilt'}"
        if repair:
            try:
                ranking_rebuild(stop=stop)
            except ServiceUnavailable as error:
                # Another process is rebuilding it.
                logger.info("reconcile: %s", first_line(error))
