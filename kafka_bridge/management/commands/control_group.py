from __future__ import annotations

import re
from argparse import ArgumentParser, ArgumentTypeError
from typing import Any

from django.core.management.base import CommandError

from common.postgres.clock import isoformat_z
from common.processes.lifecycle import StopFlag, check_database

from ...errors import UnknownTarget
from ...operating.audit import LONGEST_REASON
from ...operating.group_pauses import describe_stopped, find_target, pause, pauses_of, resume
from ...operating.worker_command import WorkerCommand, idempotent, shell_user

_PARTITION = re.compile(r"(?P<topic>[A-Za-z0-9._-]{1,249}):(?P<number>[0-9]{1,9})")


def topic_and_number(text: str) -> tuple[str, int]:
    """Read ``TOPIC:N``; an argparse type."""
    if not (match := _PARTITION.fullmatch(text)):
        raise ArgumentTypeError(f"{text[:300]!r} is not TOPIC:N, as in coupon-issue-request:0")
    return match["topic"], int(match["number"])


class Command(WorkerCommand):
    help = (
        "Pauses or resumes a consumer group (by its name, or its id with or without the prefix), one partition of it,"
        " the relay, or the worker of the Redis queue. Every process obeys within two seconds, also after a restart."
        " What is in effect already is no error and changes nothing. A group and its partitions are paused and resumed"
        " each for themselves; groups that share an id are paused and resumed together."
    )

    needs = (check_database,)

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("group", metavar="GROUP", help="a consumer group, relay, or issue-worker")
        parser.add_argument("action", choices=["pause", "resume"])
        parser.add_argument("--partition", type=topic_and_number, metavar="TOPIC:N", help="only this partition")
        parser.add_argument("--reason", required=True, metavar="R", help="stored with the pause and in the audit trail")

    def work(self, stop: StopFlag, **options: Any) -> None:
        reason = options["reason"].strip()
        if not reason or "\0" in reason:
            raise CommandError("--reason must say why")
        if len(reason) > LONGEST_REASON:
            raise CommandError(f"--reason has more than {LONGEST_REASON} characters")
        with idempotent():
            try:
                target = find_target(options["group"], *(options["partition"] or ()))
            except UnknownTarget as error:
                raise CommandError(str(error)) from error
            if options["action"] == "pause":
                found, is_new = pause(target, actor=shell_user(), reason=reason)
                state = "is paused" if is_new else "was paused already"
                self.stdout.write(
                    f"{describe_stopped(target)} {state}, since {isoformat_z(found.created_at)} by {found.actor}"
                )
                return
            was_paused = resume(target, actor=shell_user(), reason=reason)
            self.stdout.write(f"{describe_stopped(target)} {'is resumed' if was_paused else 'was not paused'}")
            for left in pauses_of(target.name):
                self.stdout.write(f"still paused: {left}, since {isoformat_z(left.created_at)} by {left.actor}")
