from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from common.processes.lifecycle import StopFlag, check_database, check_redis
from kafka_bridge.operating.worker_command import MOST_AT_ONCE, WorkerCommand, whole

from ...issue_worker import IssueWorker
from ...redis_queue import TRANSPORT


class Command(WorkerCommand):
    help = "Issues the gate coupons whose requests the flag issue-worker sends to the Redis queue instead of Kafka."

    # Not Kafka: the worker does not use it.
    needs = (check_database, check_redis)
    role = "worker"

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--batch-size", type=whole(1, MOST_AT_ONCE), metavar="N", help="default CONSUMER_BATCH_SIZE"
        )

    def work(self, stop: StopFlag, **options: Any) -> None:
        pauses = self.watch_pauses([TRANSPORT])
        worker = IssueWorker(
            batch_size=options["batch_size"],
            tick=self.heartbeat.loop(),
            is_paused=lambda: pauses.is_paused(TRANSPORT),
        )
        worker.run(stop)
