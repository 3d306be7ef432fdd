from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from ...lifecycle import StopFlag, check_database
from ...relay import BATCH_SIZE, Relay
from ..worker import MOST_AT_ONCE, WorkerCommand, whole


class Command(WorkerCommand):
    role = "relay"
    help = "Publishes the outbox to Kafka, in order per key. Several may run: they share the shards."

    # Kafka may be away at the start: rows wait in the table, and the relay for the broker.
    needs = (check_database,)

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--batch-size", type=whole(1, MOST_AT_ONCE), metavar="N", default=BATCH_SIZE)
        parser.add_argument("--until-idle", action="store_true", help="end once nothing was unpublished for a second")

    def work(self, stop: StopFlag, **options: Any) -> None:
        relay = Relay(batch_size=options["batch_size"], turned=self.heartbeat.loop())
        relay.run(stop, until_idle=options["until_idle"])
