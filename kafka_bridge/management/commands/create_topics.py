from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.management.base import CommandError

from common.processes.lifecycle import StopFlag
from common.processes.outages import ServiceUnavailable

from ...client import check_kafka, ensure_topics
from ...operating.worker_command import WorkerCommand


class Command(WorkerCommand):
    help = "Creates the missing topics of KAFKA_ROUTES, and checks the settings of all."

    needs = (check_kafka,)

    def work(self, stop: StopFlag, **options: Any) -> None:
        try:
            created, complaints = ensure_topics(settings.KAFKA_ROUTES)
        except ServiceUnavailable as error:
            raise CommandError(str(error)) from error
        for name in created:
            self.stdout.write(f"created {name}")
        if complaints:
            for complaint in complaints:
                self.stderr.write(complaint)
            number = len(complaints)
            raise CommandError(f"topics break guarantees of the service ({number} lines above); nothing was changed")
        if not created:
            self.stdout.write("all topics exist")
