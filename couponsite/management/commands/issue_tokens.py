"""Access tokens for load generators and demonstrations."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError
from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand

from common.bigint import MAX_BIGINT
from couponsite.auth.tokens import issue_access_token
from kafka_bridge.operating.worker_command import whole

_MAX_HOURS = 24 * 366


def user_range(text: str) -> range:
    """Parse ``7`` or ``1-1000``, both ends included."""
    first, dash, last = text.partition("-")
    if not dash:
        last = first
    if not all(end.isascii() and end.isdigit() and len(end) <= 19 for end in (first, last)):
        raise ArgumentTypeError(f"{text!r} is neither a user id nor a range like 1-1000")
    if not 0 < int(first) <= int(last) <= MAX_BIGINT:
        raise ArgumentTypeError(f"{text!r} is not a range of positive 64-bit user ids")
    return range(int(first), int(last) + 1)


class Command(BaseCommand):
    help = "Prints one access token per user and line, sorted by user id. The users need no rows in the database."
    requires_system_checks = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--users", type=user_range, required=True, metavar="1-1000")
        parser.add_argument("--scope", default="", help="scopes, separated by spaces")
        parser.add_argument("--hours", type=whole(1, _MAX_HOURS), default=24, help="lifetime (default 24)")

    def handle(self, *args: Any, users: range, scope: str, hours: int, **options: Any) -> None:
        lifetime = timedelta(hours=hours)
        for user_id in users:
            self.stdout.write(issue_access_token(user_id, scope, lifetime))
