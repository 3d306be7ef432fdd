from __future__ import annotations

import logging
from argparse import ArgumentParser
from collections.abc import Callable
from typing import Any

from django.core.management.base import CommandError

from common.processes.lifecycle import StopFlag, check_database, drop_connection, first_line
from common.processes.outages import is_transient
from kafka_bridge.operating.worker_command import DAY_SECONDS, WorkerCommand, whole

from ...effects import monitoring
from ...services.expiring import expire_unpaid, settle_payments, settle_refunds

logger = logging.getLogger(__name__)


class Command(WorkerCommand):
    help = (
        "Expires unpaid orders and releases their coupons, ends order alerts whose rule is no longer met, and settles"
        " payments and refunds in doubt. Runs once, or with --every until it is stopped."
    )

    role = "orders"
    needs = (check_database,)

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--every", type=whole(1, DAY_SECONDS), metavar="S", help="seconds between two sweeps")

    def work(self, stop: StopFlag, **options: Any) -> None:
        stop = stop.watched(self.heartbeat.loop())
        if options["every"] is None:
            self._sweep_once(stop)
            return
        while not stop:
            try:
                if any((done := sweep(stop)).values()):
                    logger.info(_report(done))
            except Exception as error:
                if not is_transient(error) and not isinstance(error, SweepIncomplete):
                    raise
                logger.warning("sweep failed, next attempt in %d s: %s", options["every"], first_line(error))
                drop_connection()
            stop.wait(options["every"])

    def _sweep_once(self, stop: StopFlag) -> None:
        try:
            self.stdout.write(_report(sweep(stop)))
        except SweepIncomplete as error:
            raise CommandError(str(error)) from error
        except Exception as error:
            if not is_transient(error):
                raise
            raise CommandError(f"the sweep was interrupted, run it again: {first_line(error)}") from error


class SweepIncomplete(Exception):
    """Some tasks of a sweep failed, and no service was down; the others were done."""


def sweep(stop: StopFlag) -> dict[str, int]:
    """Run every time-driven task once; returns the number of items handled, by task.

    The tasks that call the payment provider come last: a slow provider does not delay the release of coupons. A task
    that fails does not keep the others from running: SweepIncomplete names it afterwards. Raises the error of a service
    that is away at once.
    """
    done: dict[str, int] = {}
    failed: list[str] = []
    for name, task in _TASKS.items():
        try:
            if (number := task(stop)) is not None:
                done[name] = number
        except Exception as error:
            if is_transient(error):
                raise
            logger.error("sweep: %s failed, the other tasks continue", name, exc_info=error)
            drop_connection()
            failed.append(name)
    if failed:
        raise SweepIncomplete(f"not done: {', '.join(failed)}; the log has the error")
    return done


_TASKS: dict[str, Callable[[StopFlag], int | None]] = {
    # The group `monitoring` evaluates alerts only when events arrive: without this an alert would stay open until the
    # next order.
    "order alerts": lambda stop: monitoring.evaluate_alerts(),
    "orders expired": lambda stop: expire_unpaid(stop),
    "payments settled": lambda stop: settle_payments(stop),
    "refunds settled": lambda stop: settle_refunds(stop),
}


def _report(done: dict[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in done.items())
