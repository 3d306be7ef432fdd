from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.management.base import CommandError

from common.processes.lifecycle import StopFlag, check_database, first_line
from common.processes.outages import is_transient

from ...client import check_kafka, ensure_topics
from ...operating.worker_command import WorkerCommand
from ...relaying.undrained import moved_events, undrained_lines, unnamed_topics


class Command(WorkerCommand):
    help = (
        "Creates the missing topics of KAFKA_ROUTES, and checks the settings of all, which it never changes. Refuses"
        " while the topics of earlier routes have work left, which no consumer of the present routes would do."
    )

    needs = (check_database, check_kafka)

    def work(self, stop: StopFlag, **options: Any) -> None:
        try:
            moved = moved_events()
            undrained = list(undrained_lines(moved))
            if undrained:
                self._refuse(
                    undrained,
                    "topics of earlier routes are not drained ({}); nothing was changed. Under the earlier KAFKA_ROUTES"
                    " and KAFKA_GROUPS run relay_outbox --until-idle and consume_coupons --until-idle in turn until"
                    " both find nothing to do, then this again under the new ones: docs/operations.md, Changing routes"
                    " or groups",
                )
            created, complaints = ensure_topics(settings.KAFKA_ROUTES)
        except Exception as error:
            if not is_transient(error):
                raise
            raise CommandError(first_line(error)) from error
        for name in created:
            self.stdout.write(f"created {name}")
        if complaints:
            # A lost topic is created whatever is wrong with another: requests wait for it.
            changed = "the missing topics were created, nothing else" if created else "nothing"
            self._refuse(complaints, f"topics break guarantees of the service ({{}}); {changed} was changed")
        if not created:
            self.stdout.write("all topics exist")
        if former := unnamed_topics(moved):
            self.stdout.write(
                f"events before the change of routes are on other topics: set KAFKA_FORMER_TOPICS='{former}' in all"
                " processes, so that their history is read too"
            )

    def _refuse(self, lines: list[str], reason: str) -> None:
        for line in lines:
            self.stderr.write(line)
        raise CommandError(reason.format(f"{len(lines)} lines above"))
