"""``users``: a file of users for ``issue_batch``, and what the command has done with it."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command

from common.processes.lifecycle import StopFlag
from coupons.consumer_groups import ISSUE
from coupons.issuance.accept_bulk import BulkIssue
from coupons.models import Coupon
from kafka_bridge.consuming.batch import BatchHandler
from kafka_bridge.models import OutboxMessage
from tests.support.messages import message

MakeCoupon = Callable[..., Coupon]
BATCH_ID = "spring"


class Users:
    """A file of users in a folder of the test's own, and the command on it."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.path = folder / "users.csv"
        self.results_path = folder / "users.results.csv"
        self._capsys = capsys

    def write(self, *lines: object) -> None:
        self.path.write_text("\n".join(["userId", *map(str, lines)]) + "\n")

    def issue(self, coupon: Coupon, *arguments: str) -> dict[str, Any]:
        """Run the command in this process; what it prints."""
        self._capsys.readouterr()
        call_command("issue_batch", coupon.coupon_type, str(self.path), *arguments)
        (line,) = self._capsys.readouterr().out.splitlines()
        printed: dict[str, Any] = json.loads(line)
        return printed

    def accept(self, coupon: Coupon, *arguments: str) -> int:
        return int(self.issue(coupon, "--no-wait", *arguments)["accepted"])

    def results(self) -> list[dict[str, str]]:
        with self.results_path.open(newline="") as file:
            return list(csv.DictReader(file))


@pytest.fixture
def users(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Users:
    return Users(tmp_path, capsys)


def requested() -> list[dict[str, Any]]:
    """The bodies of the requests in the outbox, in their order."""
    rows = OutboxMessage.objects.filter(event_type="coupon.issue.requested.v1").order_by("id")
    return [json.loads(bytes(row.payload or b"")) for row in rows]


def requested_users() -> list[int]:
    return sorted(body["userId"] for body in requested())


def decide_everything() -> None:
    """What relay and issuer do with the requests in the outbox."""
    BatchHandler(ISSUE).handle([message(body) for body in requested()], StopFlag())


def batch_of(coupon: Coupon, batch_id: str = BATCH_ID) -> BulkIssue:
    return BulkIssue(coupon.id, coupon.coupon_type, batch_id)
