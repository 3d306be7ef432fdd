from __future__ import annotations

import logging
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from common.processes.lifecycle import StopFlag, check_database, drop_connection, first_line
from common.processes.outages import is_transient
from kafka_bridge.operating.worker_command import DAY_SECONDS, WorkerCommand, whole

from ...effects import monitoring
from ...services.expiring import expire_unpaid, settle_payments, settle_refunds
from ...services.idempotency import keys_prune

logger = logging.getLogger(__name__)


class Command(WorkerCommand):
    help = (
        "Expires unpaid orders past their time and releases their coupons, forgets old idempotency keys, ends alerts on"
        " orders that no longer hold, and settles payments and refunds in doubt. Once, or with --every until it is"
        " stopped."
    )

    role = "orders"
    needs = (check_database,)

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--every", type=whole(1, DAY_SECONDS), metavar="S", help="seconds between two sweeps")

    def work(self, stop: StopFlag, **options: Any) -> None:
        tick = self.heartbeat.loop()
        if options["every"] is None:
            self._sweep_once(stop)
            return
        while not stop:
            tick()
            try:
                if any((done := sweep(stop)).values()):
                    logger.info(_report(done))
            except Exception as error:
                if not is_transient(error):
                    raise
                logger.warning("no sweep, the next in %d s: %s", options["every"], first_line(error))
                drop_connection()
            stop.wait(options["every"])

    def _sweep_once(self, stop: StopFlag) -> None:
        try:
            self.stdout.write(_report(sweep(stop)))
        except Exception as error:
            if not is_transient(error):
                raise
            raise CommandError(f"the sweep was cut short, run it again: {first_line(error)}") from error


def sweep(stop: StopFlag) -> dict[str, int]:
    """Everything that waits for time alone; returns what was done, by name.

    What needs the payment provider comes last: while that is slow, coupons are released all the same.
    """
    # After the last order nobody judges any more, and its alert would stay open until somebody buys again.
    monitoring.evaluate_alerts()
    return {
        "orders expired": expire_unpaid(stop),
        "idempotency keys forgotten": keys_prune(stop),
        "payments settled": settle_payments(stop),
        "refunds settled": settle_refunds(stop),
    }


def _report(done: dict[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in done.items())
