"""What every long-running command shares: waiting for its services, signals, and one line when it cannot start."""

from __future__ import annotations

import gc
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from common.processes.lifecycle import StopFlag, check_database, stop_on_signals, wait_for
from common.processes.outages import BadRedisDatabase, ServiceUnavailable

from .. import metrics
from ..client import check_client_options, check_kafka
from ..errors import BadClientOptions
from .heartbeat import Heartbeat

# The sign and the digits of any 64-bit number.
_LONGEST_NUMBER = 20

# What a consumer, the issue worker or the relay takes at once, as in CONSUMER_BATCH_SIZE; and a day, for intervals.
MOST_AT_ONCE = 10_000
DAY_SECONDS = 86_400


class WorkerCommand(BaseCommand):
    """A command that is a process: subclasses name the services they need and write ``work``."""

    needs: tuple[Callable[[], None], ...] = (check_database, check_kafka)
    # A name for those that run until they are stopped: they serve metrics and have a heartbeat.
    role = ""

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--wait",
            type=seconds(0, DAY_SECONDS),
            default=30.0,
            metavar="SECONDS",
            help="how long to wait at the start for the services that it needs (default 30)",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        with stop_on_signals() as stop:
            try:
                check_client_options()
                for check in self.needs:
                    wait_for(check, options["wait"], stop)
            except (BadClientOptions, BadRedisDatabase) as error:
                raise CommandError(str(error)) from error
            except ServiceUnavailable as error:
                if stop:
                    return
                raise CommandError(f"{error} (waited {options['wait']:g} s; start it or mend its address)") from error
            # What is there by now stays: the collector, which batches keep busy, need not look at it again.
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
        try:
            yield
        finally:
            self.heartbeat.end()

    def work(self, stop: StopFlag, **options: Any) -> None:
        raise NotImplementedError


def whole(minimum: int, maximum: int) -> Callable[[str], int]:
    """An argparse type: a whole number from ``minimum`` to ``maximum``, in decimal digits."""

    def parse(text: str) -> int:
        is_number = text.isascii() and text.removeprefix("-").isdigit() and len(text) <= _LONGEST_NUMBER
        if not is_number or not minimum <= int(text) <= maximum:
            raise ArgumentTypeError(f"{text[:_LONGEST_NUMBER]!r} is not a whole number from {minimum} to {maximum}")
        return int(text)

    return parse


def seconds(minimum: float, maximum: float) -> Callable[[str], float]:
    """An argparse type: a number of seconds from ``minimum`` to ``maximum``."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not minimum <= value <= maximum:
            raise ArgumentTypeError(
                f"{text[:_LONGEST_NUMBER]!r} is not a number of seconds from {minimum:g} to {maximum:g}"
            )
        return value

    return parse
