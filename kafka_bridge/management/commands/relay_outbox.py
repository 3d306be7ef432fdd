from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from common.processes.lifecycle import StopFlag, check_database, is_behind_pooler

from ...operating.group_pauses import RELAY_NAME
from ...operating.worker_command import MOST_AT_ONCE, WorkerCommand, whole
from ...relaying.id_assignment import check_id_assignment
from ...relaying.relay import BATCH_SIZE, Relay


class Command(WorkerCommand):
    role = "relay"
    help = "Publishes the outbox to Kafka, in order per key. Several may run: they share the shards."

    # Kafka may be down at the start: the relay waits for it, and rows stay in the table.
    needs = (check_database,)

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--batch-size", type=whole(1, MOST_AT_ONCE), metavar="N", default=BATCH_SIZE)
        parser.add_argument(
            "--until-idle", action="store_true", help="exit once no row was unpublished for a second, or if paused"
        )

    def work(self, stop: StopFlag, **options: Any) -> None:
        # Leases end with the relay's session: a pooler's session outlives a killed relay, or ends under a running one.
        if is_behind_pooler():
            raise CommandError(
                "DATABASE_URL leads through a connection pooler: give the relay PostgreSQL's own address"
            )
        check_id_assignment()
        pauses = self.watch_pauses([RELAY_NAME], first=stop if options["until_idle"] else None)
        relay = Relay(
            batch_size=options["batch_size"],
            tick=self.heartbeat.loop(),
            is_paused=lambda: pauses.is_paused(RELAY_NAME),
        )
        relay.run(stop, until_idle=options["until_idle"])
