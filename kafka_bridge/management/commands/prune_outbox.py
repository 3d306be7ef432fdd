from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.conf import settings

from common.processes.lifecycle import StopFlag, check_database

from ...operating.worker_command import WorkerCommand, idempotent
from ...outbox.pruning import prune


class Command(WorkerCommand):
    help = "Deletes published outbox rows older than OUTBOX_RETENTION_HOURS, except requests without a result."

    needs = (check_database,)

    def work(self, stop: StopFlag, **options: Any) -> None:
        with idempotent():
            deleted = prune(timedelta(hours=settings.OUTBOX_RETENTION_HOURS), stop)
        self.stdout.write(f"deleted {deleted} rows")
