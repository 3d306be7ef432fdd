from __future__ import annotations

from typing import Any

from django.core.management.base import CommandError

from coupons.invariants import violations
from kafka_bridge.errors import ServiceUnavailable
from kafka_bridge.lifecycle import StopFlag, check_database
from kafka_bridge.management.worker import WorkerCommand


class Command(WorkerCommand):
    help = "Counts what must never happen; exit 1 and a line for each violation."

    needs = (check_database,)

    def work(self, stop: StopFlag, **options: Any) -> None:
        broken = 0
        try:
            for name, lines in violations():
                self.stdout.write(f"{'ok  ' if not lines else 'FAIL'} {name}")
                for line in lines:
                    self.stdout.write(f"     {line}")
                broken += bool(lines)
        except ServiceUnavailable as error:
            raise CommandError(f"not everything could be checked: {error}") from error
        if broken:
            raise CommandError(f"{broken} invariants do not hold")
