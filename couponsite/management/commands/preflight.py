from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from django.core.management.base import CommandError

from common.processes.lifecycle import StopFlag
from coupons.policy import is_coupon_type
from coupons.preflight.rehearsal import rehearse
from coupons.preflight.run import CROWD_FACTOR, gate_warm, preflight
from coupons.preflight.senders import HttpSender
from couponsite.auth.tokens import issue_access_token
from kafka_bridge.operating.alert_test import alert_test_send, wait_for_delivery
from kafka_bridge.operating.preflight import CheckLine, is_go, run_check
from kafka_bridge.operating.worker_command import WorkerCommand, shell_user, whole

_MOST_REQUESTS = 1_000_000_000
_DELIVERY_SECONDS = 10.0
_TOKEN_LIFETIME = timedelta(minutes=10)


class Command(WorkerCommand):
    help = (
        "Checks before an event of a coupon whether it may start: prints a line per check (go, warn, unknown, no-go)"
        " with its remedy, and exits with 1 if a line says no-go."
    )

    # A service that is away is a no-go line.
    needs = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("coupon_type", metavar="TYPE")
        parser.add_argument(
            "--expect",
            type=whole(1, _MOST_REQUESTS),
            metavar="N",
            help=f"requests to expect; default: {CROWD_FACTOR} times the quantity of the coupon",
        )
        parser.add_argument(
            "--rehearse",
            action="store_true",
            help="run a small sale on a hidden copy of the coupon through the running processes; no user is notified",
        )
        parser.add_argument(
            "--url",
            type=_web_url,
            metavar="URL",
            help="send the rehearsal's requests over HTTP to the web process there, such as http://127.0.0.1:8000",
        )
        parser.add_argument("--warm", action="store_true", help="first load the gate of the coupon")
        parser.add_argument(
            "--test-alert", action="store_true", help="first send a test alert, and wait for its delivery"
        )

        parser.add_argument(
            "--reason", default="", metavar="R", help="kept in the audit trail with the rehearsal and the test alert"
        )

    def work(self, stop: StopFlag, **options: Any) -> None:
        coupon_type = options["coupon_type"]
        if not is_coupon_type(coupon_type):
            raise CommandError("TYPE must be 1 to 64 of A-Z a-z 0-9 _ -")
        if options["url"] and not options["rehearse"]:
            raise CommandError("--url is where a rehearsal sends its requests: give --rehearse too")
        reason = options["reason"] or f"preflight of {coupon_type}"
        lines: list[CheckLine] = []
        if options["warm"]:
            lines += run_check("gate", lambda: _warm(coupon_type))
        if options["test_alert"]:
            lines += run_check("test alert", lambda: _send_test_alert(reason, stop))
        lines += preflight(coupon_type, options["expect"])
        self._print(lines)
        if options["rehearse"] and not stop:
            sender = HttpSender(options["url"], _token) if options["url"] else None
            steps = run_check(
                "rehearsal",
                lambda: rehearse(coupon_type, actor=shell_user(), reason=reason, sender=sender, stop=stop),
            )
            self.stdout.write("")
            self._print(steps)
            lines += steps
        if not is_go(lines):
            broken = sum(not is_go([line]) for line in lines)
            raise CommandError(f"no-go: {broken} of {len(lines)} lines say so")
        self.stdout.write("go")

    def _print(self, lines: list[CheckLine]) -> None:
        width = max((len(line.name) for line in lines), default=0)
        for line in lines:
            self.stdout.write(f"{line.verdict:<7} {line.name:<{width}}  {line.found}")
            if line.remedy:
                self.stdout.write(f"{'':7} {'':<{width}}  -> {line.remedy}")


def _web_url(text: str) -> str:
    """Parse the address of a web process. Raises ArgumentTypeError."""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ArgumentTypeError(f"{text!r} is no address such as http://127.0.0.1:8000")
    return text


def _token(user_id: int) -> str:
    return issue_access_token(user_id, lifetime=_TOKEN_LIFETIME)


def _warm(coupon_type: str) -> list[CheckLine]:
    gate_warm(coupon_type)
    # The check of the gate says whether it is loaded.
    return []


def _send_test_alert(reason: str, stop: StopFlag) -> list[CheckLine]:
    wait_for_delivery(alert_test_send(actor=shell_user(), reason=reason), _DELIVERY_SECONDS, stop)
    # The check of the test alert says whether it arrived.
    return []
