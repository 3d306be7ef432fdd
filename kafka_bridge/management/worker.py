"""What every long-running command shares: waiting for its services, signals, and one line when it cannot start."""

from __future__ import annotations

import gc
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from .. import metrics
from ..client import check_client_options, check_kafka
from ..errors import BadClientOptions, ServiceUnavailable
from ..heartbeat import Heartbeat
from ..lifecycle import StopFlag, check_database, stop_on_signals, wait_for


class WorkerCommand(BaseCommand):
    """A command that is a process: subclasses name the services they need and write ``work``."""

    needs: tuple[Callable[[], None], ...] = (check_database, check_kafka)
    # A name for those that run until they are stopped: they serve metrics and have a heartbeat.
    role = ""

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--wait",
            type=float,
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
            except BadClientOptions as error:
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


def positive(text: str) -> int:
    """An argparse type: a whole number from 1 on."""
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number
