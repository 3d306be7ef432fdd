from __future__ import annotations

import time
from argparse import ArgumentParser
from contextlib import suppress
from typing import Any

import msgspec
from django.conf import settings
from django.core.management.base import CommandError

from common.processes.lifecycle import StopFlag, check_database, drop_connection, first_line
from common.processes.outages import is_transient

from ...consuming.dead_letters import FOREIGN, RELAY
from ...models import MOST_RATE, Redrive
from ...operating.audit import LONGEST_REASON
from ...operating.worker_command import WorkerCommand, idempotent, shell_user, whole
from ...redriving.executor import POLL_SECONDS, RedriveExecutor
from ...redriving.letter_filter import LetterFilter
from ...redriving.preview import Preview
from ...redriving.redrives import (
    DEFAULT_RATE,
    ENDED,
    STOPPED_BY,
    NoLetters,
    RedriveRefused,
    redrive_cancel,
    redrive_create,
    redrive_pause,
    redrive_start,
)
from ...redriving.replay import ReplayResult
from ...registry import groups, unprefixed
from ...routes import topics_of

_PROGRESS_SECONDS = 5.0
_GOOD = frozenset({ReplayResult.APPLIED, ReplayResult.DONE_ALREADY})
_MOST_EXAMPLES = 5


class Command(WorkerCommand):
    help = (
        "Replays open dead letters that match every option given, as a redrive that this command executes itself."
        " With --dry-run it prints what would happen, and changes nothing but the list of redrives."
    )

    needs = (check_database,)

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--topic", default="", help="the original topic")
        parser.add_argument("--group", default="", help="the consumer group, by its name in KAFKA_GROUPS")
        parser.add_argument("--error", default="", help="the error class")
        parser.add_argument(
            "--rate",
            type=whole(1, MOST_RATE),
            default=DEFAULT_RATE,
            metavar="N",
            help=f"letters a second at most (default {DEFAULT_RATE})",
        )
        parser.add_argument("--reason", default="", help="recorded in the audit trail")
        parser.add_argument("--dry-run", action="store_true", help="print the preview and replay nothing")

    def work(self, stop: StopFlag, **options: Any) -> None:
        letters = LetterFilter(topic=unprefixed(options["topic"]), group=options["group"], error=options["error"])
        if "\0" in "".join((letters.topic, letters.group, letters.error, options["reason"])):
            raise CommandError("an option has a NUL character")
        if len(options["reason"]) > LONGEST_REASON:
            raise CommandError(f"--reason has more than {LONGEST_REASON} characters")
        with idempotent():
            redrive = self._create(letters, options)
        if redrive is not None:
            try:
                self._execute(redrive, stop, is_dry=options["dry_run"])
            except RedriveRefused as error:
                raise CommandError(f"another operator was faster: {error}") from error

    def _create(self, letters: LetterFilter, options: dict[str, Any]) -> Redrive | None:
        """Return None if no letter matches: the command was run before, perhaps."""
        try:
            return redrive_create(
                name="replay_dead_letters --dry-run" if options["dry_run"] else "replay_dead_letters",
                reason=options["reason"] or "replayed at the shell",
                actor=shell_user(),
                letters=letters,
                rate=options["rate"],
            )
        except NoLetters as error:
            if why := _misspelt(letters):
                raise CommandError(f"{error}: {why}") from error
            self.stdout.write(str(error))
            return None
        except RedriveRefused as error:
            raise CommandError(str(error)) from error

    def _execute(self, redrive: Redrive, stop: StopFlag, *, is_dry: bool) -> None:
        executor = RedriveExecutor(only=redrive.pk)
        self.stdout.write(f"{redrive}: {redrive.total} letters, {_classes(redrive)}")
        shown_at = time.monotonic()
        try:
            while not stop and redrive.state not in ENDED:
                try:
                    is_busy = executor.step(stop)
                    redrive.refresh_from_db()
                    if redrive.state == Redrive.State.PAUSED and redrive.waits_for.startswith(STOPPED_BY):
                        where = f"/ops/redrives/{redrive.pk}"
                        raise CommandError(f"{redrive} was {redrive.waits_for}; mend it, then resume it at {where}")
                    if redrive.state == Redrive.State.PREVIEWED and not redrive.wants_preview:
                        self._show_preview(redrive)
                        if is_dry:
                            redrive_cancel(redrive.pk, actor=shell_user(), reason="a dry run")
                            return
                        redrive = redrive_start(
                            redrive.pk, actor=shell_user(), reason=redrive.reason, typed_count=redrive.total
                        )
                except Exception as error:
                    if not is_transient(error):
                        raise
                    is_busy = False
                    self.stderr.write(f"waiting: {first_line(error)}")
                    drop_connection()
                    stop.wait(1.0)
                if time.monotonic() - shown_at >= _PROGRESS_SECONDS:
                    shown_at = time.monotonic()
                    self.stdout.write(_progress(redrive))
                if not is_busy:
                    stop.wait(POLL_SECONDS / 5)
        finally:
            executor.release_if_possible()
        self._finish(redrive)

    def _show_preview(self, redrive: Redrive) -> None:
        preview = msgspec.convert(redrive.preview, Preview)
        counts = ", ".join(f"{number} {result.replace('_', ' ')}" for result, number in preview.counts.items())
        self.stdout.write(f"preview of {preview.looked_at} letters: {counts or 'nothing'}")
        for kind, number in preview.kinds.items():
            self.stdout.write(f"  would be {kind}: {number}")
        for result, examples in preview.examples.items():
            for letter_id, detail in examples:
                self.stdout.write(f"  {result.replace('_', ' ')}: letter {letter_id}{detail and f': {detail}'}")
        for note in preview.notes:
            self.stdout.write(f"  {note}")

    def _finish(self, redrive: Redrive) -> None:
        self.stdout.write(_progress(redrive))
        for item in redrive.items.exclude(result__in=_GOOD).exclude(done_at=None).order_by("id")[:_MOST_EXAMPLES]:
            self.stdout.write(f"  {item.result.replace('_', ' ')}: letter {item.letter_id}: {item.detail}")
        left = redrive.total - sum(redrive.counts.get(result, 0) for result in _GOOD)
        if redrive.state == Redrive.State.DONE and not left:
            return
        if redrive.state in ENDED:
            raise CommandError(f"{left} letters are not replayed: {redrive} is {redrive.state}, the letters stay open")
        with suppress(RedriveRefused):
            redrive = redrive_pause(redrive.pk, actor=shell_user(), reason="the command was stopped")
        self.stdout.write(
            f"stopped with {left} letters left: {redrive} is {redrive.state}, see /ops/redrives/{redrive.pk}"
        )


def _misspelt(letters: LetterFilter) -> str:
    """Return which name of the filter is not known and what is, empty if all are.

    A name that is not known any more may still have letters: it is looked at only where none was found.
    """
    for what, name, known in (
        ("group", letters.group, {*groups(), RELAY, FOREIGN}),
        ("topic", letters.topic, topics_of(settings.KAFKA_ROUTES)),
    ):
        if name and name not in known:
            return f"there is no {what} {name[:300]!r}; known: {', '.join(sorted(known))}"
    return ""


def _progress(redrive: Redrive) -> str:
    counts = ", ".join(f"{number} {result.replace('_', ' ')}" for result, number in sorted(redrive.counts.items()))
    waits = f"; waits for: {redrive.waits_for}" if redrive.waits_for else ""
    return f"{sum(redrive.counts.values())} of {redrive.total}: {counts or 'none yet'}{waits}"


def _classes(redrive: Redrive) -> str:
    return ", ".join(f"{number} {error_class}" for error_class, number in redrive.histogram)
