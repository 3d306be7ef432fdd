from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from common.processes.lifecycle import StopFlag, check_database

from ...operating.processes import silent_processes_forget
from ...operating.worker_command import WorkerCommand, shell_user


class Command(WorkerCommand):
    help = (
        "Deletes the heartbeats of processes that are silent: killed, and not started again on their host. Their alerts"
        " end. A process that was only cut off from PostgreSQL reports again by itself."
    )

    needs = (check_database,)

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--role", default="", metavar="R", help="only processes of this role")
        parser.add_argument("--host", default="", metavar="H", help="only processes of this host")
        parser.add_argument("--reason", default="", metavar="R", help="kept in the audit trail")

    def work(self, stop: StopFlag, **options: Any) -> None:
        forgotten = silent_processes_forget(
            actor=shell_user(), reason=options["reason"], role=options["role"], host=options["host"]
        )
        for process in forgotten:
            self.stdout.write(f"forgotten: {process}")
        if not forgotten:
            self.stdout.write("no process is silent")
