"""The test alert: it takes the way of every alert to the webhook, and its delivery is recorded in the audit trail."""

from __future__ import annotations

import time
from datetime import datetime

from django.db import transaction

from common.processes.lifecycle import StopFlag

from ..models import OperatorAction
from .alerts import alert_rule, end_rules, open_alert
from .audit import record_action

TEST_ALERT = alert_rule("test-alert", "warning")
SENT, DELIVERED = "test_alert.send", "test_alert.deliver"
_POLL_SECONDS = 0.2


def alert_test_send(*, actor: str, reason: str) -> int:
    """Open and end a test alert, which the process that judges alerts notifies; returns the id of its record."""
    with transaction.atomic():
        open_alert(TEST_ALERT, f"a test by {actor}: nothing is wrong")
        end_rules([TEST_ALERT.name])
        return record_action(actor=actor, action=SENT, subject=TEST_ALERT.name, reason=reason).pk


def record_delivery(rule: str) -> None:
    """Record that the webhook accepted the beginning of an alert of ``rule``; of other rules nothing is recorded."""
    if rule == TEST_ALERT.name:
        with transaction.atomic():
            record_action(actor="the sender of notifications", action=DELIVERED, subject=rule)


def last_delivery() -> datetime | None:
    """Return when the webhook accepted the last test alert, None: never."""
    return OperatorAction.objects.filter(action=DELIVERED).order_by("-id").values_list("created_at", flat=True).first()


def wait_for_delivery(sent: int, seconds: float, stop: StopFlag) -> None:
    """Wait until the test alert with the record ``sent`` is delivered, for so long at most, or until ``stop``."""
    deadline = time.monotonic() + seconds
    while not OperatorAction.objects.filter(action=DELIVERED, id__gt=sent).exists():
        if time.monotonic() > deadline or stop.wait(_POLL_SECONDS):
            return
