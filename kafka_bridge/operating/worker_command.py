"""Base of commands that need services: waits for them, handles signals, and exits with one line if it cannot start."""

from __future__ import annotations

import gc
import getpass
import logging
import os
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.db import transaction

from common.processes.lifecycle import StopFlag, check_database, drop_connection, first_line, stop_on_signals, wait_for
from common.processes.outages import BadRedisDatabase, ServiceUnavailable, is_transient
from common.processes.stack_dump import stacks_on_signal

from .. import metrics
from ..client import check_client_options, check_kafka
from ..errors import BadClientOptions
from ..outbox.wake import RelayWaker
from .audit import Values, record_action
from .heartbeat import Heartbeat
from .pause_watch import PauseWatch

logger = logging.getLogger(__name__)

# Enough for any signed 64-bit number.
_MAX_NUMBER_CHARACTERS = 20

# Upper limits of options: messages or rows in a batch, as in CONSUMER_BATCH_SIZE, and intervals (a day).
MOST_AT_ONCE = 10_000
DAY_SECONDS = 86_400

_AGAIN_SECONDS = 1.0


class WorkerCommand(BaseCommand):
    """A command that runs as a process: subclasses set ``needs`` (checks of services) and implement ``work``."""

    needs: tuple[Callable[[], None], ...] = (check_database, check_kafka)
    # Set by commands that run until they are stopped: they serve metrics, write a heartbeat under this name and wake
    # the relay after their commits.
    role = ""

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--wait",
            type=seconds(0, DAY_SECONDS),
            default=30.0,
            metavar="SECONDS",
            help="how long to wait at the start for the required services (default 30)",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        with stacks_on_signal(), stop_on_signals() as stop:
            try:
                check_client_options()
                for check in self.needs:
                    wait_for(check, options["wait"], stop)
            except (BadClientOptions, BadRedisDatabase) as error:
                raise CommandError(str(error)) from error
            except ServiceUnavailable as error:
                if stop:
                    return
                raise CommandError(
                    f"{error} (waited {options['wait']:g} s; start the service or correct its address)"
                ) from error
            # All objects so far are permanent: freezing them spares the garbage collector a scan at every collection.
            gc.collect()
            gc.freeze()
            with self._observed():
                self.work(stop, **options)

    @contextmanager
    def _observed(self) -> Iterator[None]:
        if not self.role:
            yield
            return
        metrics.serve(settings.METRICS_HOST, settings.METRICS_PORT)
        self.heartbeat = Heartbeat(self.role)
        self.heartbeat.start()
        waker = RelayWaker()
        waker.start()
        try:
            yield
        finally:
            waker.end()
            self.heartbeat.end()

    def watch_pauses(self, names: Collection[str], *, first: StopFlag | None = None) -> PauseWatch:
        """Return the pauses of groups or workers, read now and then once a second in the heartbeat's thread.

        With ``first`` they are read before this returns, unless that flag is set: a run that ends without what is
        paused must not end because nothing is known yet.
        """
        watch = PauseWatch(names)
        while True:
            try:
                watch.read()
                break
            except Exception as error:
                logger.warning("pauses not read, everything is paused until they are: %s", first_line(error))
                drop_connection()
            if first is None or first.wait(_AGAIN_SECONDS):
                break
        self.heartbeat.every_second(watch.read)
        return watch

    def work(self, stop: StopFlag, **options: Any) -> None:
        raise NotImplementedError


@contextmanager
def idempotent() -> Iterator[None]:
    """Raise CommandError for a lost connection inside; its message asks the operator to run the command again."""
    try:
        yield
    except Exception as error:
        if not is_transient(error):
            raise
        raise CommandError(
            f"connection lost, outcome unknown ({first_line(error)}): run the same command again, it is idempotent"
        ) from error


def shell_user() -> str:
    """Return the name under which a change by a command is recorded."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        # A container may run under a number that has no name.
        name = f"uid {os.getuid()}"
    return f"{name} at the shell"


def record_command(*, action: str, subject: str, reason: str = "", after: Values | None = None) -> None:
    """Record what a command begins to do, in a transaction of its own, see ``audit.record_action``.

    For commands that do their work in many transactions, or outside PostgreSQL. Raises CommandError for a lost
    connection.
    """
    with idempotent(), transaction.atomic():
        record_action(actor=shell_user(), action=action, subject=subject, reason=reason, after=after)


def whole(minimum: int, maximum: int) -> Callable[[str], int]:
    """Return an argparse type: a whole number from ``minimum`` to ``maximum``, in decimal digits."""

    def parse(text: str) -> int:
        is_number = text.isascii() and text.removeprefix("-").isdigit() and len(text) <= _MAX_NUMBER_CHARACTERS
        if not is_number or not minimum <= int(text) <= maximum:
            raise ArgumentTypeError(
                f"{text[:_MAX_NUMBER_CHARACTERS]!r} is not a whole number from {minimum} to {maximum}"
            )
        return int(text)

    return parse


def seconds(minimum: float, maximum: float) -> Callable[[str], float]:
    """Return an argparse type: a number of seconds from ``minimum`` to ``maximum``."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not minimum <= value <= maximum:
            raise ArgumentTypeError(
                f"{text[:_MAX_NUMBER_CHARACTERS]!r} is not a number of seconds from {minimum:g} to {maximum:g}"
            )
        return value

    return parse
