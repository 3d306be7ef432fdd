from __future__ import annotations

import os
import signal
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from common.processes.outages import ServiceUnavailable
from kafka_bridge.operating.worker_command import whole


class Command(BaseCommand):
    help = "Run a flash sale on the real processes and print the verdict; `make demo` starts the services it needs."
    requires_system_checks = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--requests", type=whole(1, 10_000_000), default=20_000, metavar="N")
        parser.add_argument("--users", type=whole(1, 10_000_000), default=10_000, metavar="N", help="default 10000")
        parser.add_argument("--coupons", type=whole(1, 1000), default=5, metavar="N", help="coupon types (default 5)")
        parser.add_argument(
            "--quantity",
            type=whole(1, 10_000_000),
            default=1000,
            metavar="N",
            help="stock of each coupon type (default 1000)",
        )
        parser.add_argument(
            "--orders",
            type=whole(1, 100_000),
            default=300,
            metavar="N",
            help="orders paid after the sale (default 300)",
        )
        parser.add_argument("--issuers", type=whole(1, 64), default=3, metavar="N", help="issuer processes (default 3)")
        folder = settings.BASE_DIR / ".devstack" / (os.environ.get("DEVSTACK_NAME") or "demo")
        parser.add_argument("--logs", type=Path, default=folder / "logs")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            from rich.console import Console

            from demo.runner import Demo
            from demo.sale import Size
            from demo.stories.telling import STORIES, StoryRun
        except ModuleNotFoundError as error:
            raise CommandError(f"{error.name} is missing: pip install -r requirements-dev.txt") from error
        # An empty value counts as unset, as for settings.
        number = os.environ.get("SEED", "")
        if number and number not in STORIES:
            raise CommandError(f"there is no document {number!r}: set SEED to one of {', '.join(STORIES)}, or unset it")
        size = Size(options["requests"], options["users"], options["coupons"], options["quantity"])
        console, log_folder = Console(), options["logs"]
        demo: Demo | StoryRun
        if number:
            demo = StoryRun(STORIES[number](), log_folder=log_folder, console=console)
        else:
            demo = Demo(
                size=size,
                orders=options["orders"],
                issuers=options["issuers"],
                log_folder=log_folder,
                console=console,
            )
        try:
            with interrupted_by_signals():
                held = demo.run(stay=os.environ.get("DEMO_EXIT") != "1")
        except KeyboardInterrupt:
            raise CommandError("interrupted", returncode=128 + signal.SIGINT) from None
        except (ServiceUnavailable, TimeoutError) as error:
            raise CommandError(str(error)) from error
        if not held:
            raise CommandError("a check failed, see the FAIL lines")


class Interrupted(KeyboardInterrupt):
    """SIGTERM or SIGINT. A KeyboardInterrupt because event loops propagate no other exception of a signal handler."""


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Raise Interrupted at the first SIGTERM or SIGINT; ignore later ones, which must not interrupt the cleanup."""

    def handle(number: int, frame: FrameType | None) -> None:
        for wanted in before:
            # Not SIG_IGN, which a child process started from now on would inherit.
            signal.signal(wanted, lambda number, frame: None)
        raise Interrupted

    before = {wanted: signal.signal(wanted, handle) for wanted in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for wanted, handler in before.items():
            signal.signal(wanted, handler)
