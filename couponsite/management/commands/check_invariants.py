from __future__ import annotations

from itertools import chain
from typing import Any

from django.core.management.base import CommandError

from common.processes.lifecycle import StopFlag, check_database
from common.processes.outages import ServiceUnavailable
from coupons import invariants as coupon_invariants
from kafka_bridge.operating.worker_command import WorkerCommand
from orders import invariants as order_invariants


class Command(WorkerCommand):
    help = "Checks the invariants of coupons and orders; prints a line per violation and exits with 1 if there is any."

    needs = (check_database,)

    def work(self, stop: StopFlag, **options: Any) -> None:
        broken = 0
        try:
            for name, lines in chain(coupon_invariants.violations(), order_invariants.violations()):
                self.stdout.write(f"{'ok  ' if not lines else 'FAIL'} {name}")
                for line in lines:
                    self.stdout.write(f"     {line}")
                broken += bool(lines)
        except ServiceUnavailable as error:
            raise CommandError(f"not everything could be checked: {error}") from error
        if broken:
            raise CommandError(f"{broken} invariants do not hold")
