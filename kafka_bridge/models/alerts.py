"""Alerts, their notifications and silences, and who judges them."""

from __future__ import annotations

from django.db import models
from django.db.models import Q
from django.db.models.functions import Now
from uuid_utils.compat import uuid7


class Alert(models.Model):
    """An alert for operators; at most one per rule is open."""

    class Severity(models.TextChoices):
        WARNING = "warning"
        CRITICAL = "critical"

    # Also the idempotency key of the alert's notifications.
    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    rule = models.CharField(max_length=64)
    severity = models.CharField(max_length=16, choices=Severity)
    summary = models.TextField()
    runbook = models.CharField(max_length=200, help_text="where it says what to do")
    started_at = models.DateTimeField(db_default=Now())
    ended_at = models.DateTimeField(null=True)
    # Of an alert whose condition the evaluator judges.
    last_true_at = models.DateTimeField(null=True, help_text="when its condition was last true")
    # Of an alert whose condition another process judges; the evaluator ends it.
    cleared_at = models.DateTimeField(null=True, help_text="since when its condition is false; null: it is true")

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["rule"], condition=Q(ended_at=None), name="one_open_alert_per_rule"),
        ]
        indexes = [
            models.Index(fields=["ended_at"], name="alert_ended", condition=~Q(ended_at=None)),
            # For the search by rule among the ended ones.
            models.Index(fields=["rule", "ended_at"], name="alert_ended_of_rule", condition=~Q(ended_at=None)),
        ]

    def __str__(self) -> str:
        return f"{self.rule}: {self.summary}"


class AlertNotification(models.Model):
    """A notification of an alert's beginning or end that ``ALERT_WEBHOOK_URL`` has not accepted yet.

    It is inserted in the transaction that opens or ends the alert, and deleted once it is accepted.
    """

    class Phase(models.TextChoices):
        START = "start"
        END = "end"

    id = models.BigAutoField(primary_key=True)
    # Alerts are pruned only without a notification.
    alert = models.ForeignKey(Alert, on_delete=models.CASCADE, related_name="notifications")
    phase = models.CharField(max_length=8, choices=Phase)
    attempts = models.PositiveIntegerField(db_default=0)
    next_try_at = models.DateTimeField(db_default=Now())
    last_error = models.TextField(db_default="")
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["alert", "phase"], name="one_notification_per_phase"),
        ]

    def __str__(self) -> str:
        return f"{self.alert_id}:{self.phase}"


class AlertSilence(models.Model):
    """A rule whose alerts are not notified until a given time; an alert still open then is notified then."""

    rule = models.CharField(max_length=64, primary_key=True)
    until = models.DateTimeField()
    reason = models.CharField(max_length=500)
    actor = models.CharField(max_length=150, help_text="who did it")
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        permissions = [("silence_alerts", "Can silence the notifications of alerts")]
        indexes = [models.Index(fields=["until"], name="silence_by_end")]

    def __str__(self) -> str:
        return f"{self.rule} until {self.until}"


class AlarmLease(models.Model):
    """Which process judges the alarms, until when (by the database's clock), and when they were last judged.

    The table has one row, with id 1, or none.
    """

    id = models.PositiveSmallIntegerField(primary_key=True)
    owner = models.UUIDField(null=True)
    expires_at = models.DateTimeField(null=True)
    judged_at = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return f"alarms judged at {self.judged_at}"
