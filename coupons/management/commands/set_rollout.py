from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import CommandError

from common.processes.lifecycle import StopFlag, check_database
from kafka_bridge.operating.worker_command import WorkerCommand, idempotent, shell_user

from ...models import RolloutChange
from ...rollout import rollout_set


class Command(WorkerCommand):
    help = (
        "Sets the percentage of users whose requests for gate coupons use the Redis queue instead of Kafka."
        " It takes effect within a second. Each change is recorded, also a repeat, which changes nothing."
    )

    needs = (check_database,)

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("flag", metavar="FLAG", help="issue-worker, or issue-worker-TYPE for one coupon")
        parser.add_argument("percent", metavar="PERCENT", help="0 to 100, in tenths; none removes the flag")
        parser.add_argument("--reason", default="", metavar="S", help="stored with the change")

    def work(self, stop: StopFlag, **options: Any) -> None:
        percent = None if options["percent"] == "none" else options["percent"]
        change = RolloutChange(flag=options["flag"], percent=percent, reason=options["reason"], actor=shell_user())
        try:
            (options["flag"] + options["reason"]).encode()
            with idempotent():
                change.full_clean()
                rollout_set(change)
        except ValidationError as error:
            raise CommandError(
                " ".join(f"{field}: {' '.join(texts)}" for field, texts in error.message_dict.items())
            ) from error
        except UnicodeEncodeError as error:
            raise CommandError("The flag or the reason is not valid Unicode.") from error
        self.stdout.write(str(change))
