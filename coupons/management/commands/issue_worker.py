from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from kafka_bridge.lifecycle import StopFlag, check_database, check_redis
from kafka_bridge.management.worker import MOST_AT_ONCE, WorkerCommand, whole

from ...worker.loop import IssueWorker


class Command(WorkerCommand):
    help = "Issues the share of the gate's requests that the flag issue-worker keeps from Kafka."

    # Not Kafka, which it has nothing to do with.
    needs = (check_database, check_redis)
    role = "worker"

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--batch-size", type=whole(1, MOST_AT_ONCE), metavar="N", help="default CONSUMER_BATCH_SIZE"
        )

    def work(self, stop: StopFlag, **options: Any) -> None:
        IssueWorker(batch_size=options["batch_size"], turned=self.heartbeat.loop()).run(stop)
