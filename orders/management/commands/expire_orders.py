from __future__ import annotations

import logging
from argparse import ArgumentParser
from collections.abc import Callable
from typing import Any

from django.db import transaction

from kafka_bridge.errors import is_transient
from kafka_bridge.lifecycle import StopFlag, check_database, drop_connection, first_line
from kafka_bridge.management.worker import WorkerCommand, positive

from ...services.expiring import expire_unpaid, settle_payments, settle_refunds
from ...services.idempotency import keys_prune

logger = logging.getLogger(__name__)

_PRUNED_AT_ONCE = 1000


class Command(WorkerCommand):
    help = (
        "Settles payments and refunds in doubt, expires unpaid orders past their time and releases their coupons, and"
        " forgets old idempotency keys. Once, or with --every until it is stopped."
    )

    role = "orders"
    needs = (check_database,)

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--every", type=positive, metavar="S", help="seconds between two sweeps")

    def work(self, stop: StopFlag, **options: Any) -> None:
        turned = self.heartbeat.loop()
        if options["every"] is None:
            self.stdout.write(_report(sweep(stop)))
            return
        while not stop:
            turned()
            try:
                if any((done := sweep(stop)).values()):
                    logger.info(_report(done))
            except Exception as error:
                if not is_transient(error):
                    raise
                logger.warning("no sweep, the next in %d s: %s", options["every"], first_line(error))
                drop_connection()
            stop.wait(options["every"])


def sweep(stop: StopFlag) -> dict[str, int]:
    """Everything that waits for time alone; returns what was done, by name."""
    return {
        "payments settled": settle_payments(stop),
        "refunds settled": settle_refunds(stop),
        "orders expired": _repeat(expire_unpaid, stop),
        "idempotency keys forgotten": _repeat(_prune, stop),
    }


def _repeat(step: Callable[[], int], stop: StopFlag) -> int:
    total = 0
    while not stop and (done := step()):
        total += done
    return total


def _prune() -> int:
    with transaction.atomic():
        return keys_prune(limit=_PRUNED_AT_ONCE)


def _report(done: dict[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in done.items())
