"""Redrives of dead letters."""

from __future__ import annotations

from django.db import models
from django.db.models import Q, Value
from django.db.models.functions import Now

# Letters a second.
MOST_RATE = 1000


class Redrive(models.Model):
    """A frozen set of dead letters that an operator has replayed, see ``redriving.redrives``; times are the database's.

    The process that executes it, or makes its preview, has a lease of it.
    """

    class State(models.TextChoices):
        # Without a preview yet.
        PREPARING = "preparing"
        PREVIEWED = "previewed"
        RUNNING = "running"
        PAUSED = "paused"
        # The two final states.
        DONE = "done"
        CANCELLED = "cancelled"

    id = models.BigAutoField(primary_key=True)
    name = models.CharField(max_length=100)
    reason = models.CharField(max_length=500)
    actor = models.CharField(max_length=150, help_text="who created it")
    state = models.CharField(max_length=16, choices=State, db_default="preparing")
    rate = models.PositiveIntegerField(help_text="letters a second at most")
    # The filter, see ``redriving.letter_filter``, or {"selected": <number of ids>}.
    selection = models.JSONField()
    total = models.PositiveIntegerField(help_text="letters of the set")
    # [[error class, letters], ...] of the set at its creation, most letters first.
    histogram = models.JSONField()
    # {"<result>": letters so far, ...}
    counts = models.JSONField(db_default=Value({}, models.JSONField()))
    # See ``redriving.preview.Preview``; null: none was made yet.
    preview = models.JSONField(null=True)
    previewed_at = models.DateTimeField(null=True)
    wants_preview = models.BooleanField(db_default=True)
    # Start after the preview that is wanted, if it says the same as the last.
    starts_after_preview = models.BooleanField(db_default=False)
    accepts_delay = models.BooleanField(
        db_default=False, help_text="the preview may delay a running sale by two seconds"
    )
    waits_for = models.TextField(
        db_default="", help_text="the outage that it waits for, or the error that stopped it; empty: none"
    )
    lease_owner = models.UUIDField(null=True)
    leased_until = models.DateTimeField(null=True)
    created_at = models.DateTimeField(db_default=Now())
    started_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            # The executor divides by it.
            models.CheckConstraint(condition=Q(rate__range=(1, MOST_RATE)), name="redrive_rate_in_range"),
        ]
        indexes = [
            # For the processes that look for work.
            models.Index(fields=["id"], name="redrive_with_work", condition=Q(state="running") | Q(wants_preview=True)),
            # For the housekeeper: redrives to be pruned, and those that were never started.
            models.Index(fields=["ended_at"], name="redrive_ended", condition=~Q(ended_at=None)),
            models.Index(
                fields=["created_at"], name="redrive_not_started", condition=Q(started_at=None, ended_at=None)
            ),
        ]

    def __str__(self) -> str:
        return f"redrive {self.id} ({self.name})"


class RedriveItem(models.Model):
    """A dead letter of a redrive, and what became of its replay."""

    id = models.BigAutoField(primary_key=True)
    # No foreign key in the database, which would be checked row by row. Items are pruned before their redrive.
    redrive = models.ForeignKey(
        Redrive, on_delete=models.CASCADE, db_constraint=False, db_index=False, related_name="items"
    )
    # No foreign key: closed letters are pruned.
    letter_id = models.BigIntegerField()
    # A ``redriving.replay.ReplayResult``; empty: not replayed yet.
    result = models.CharField(max_length=16, db_default="")
    detail = models.TextField(db_default="")
    due_at = models.DateTimeField(db_default=Now(), help_text="not to be tried before")
    done_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["redrive", "letter_id"], name="redrive_letter_once"),
        ]
        indexes = [
            # For the executor, which takes those that are due longest.
            models.Index(fields=["redrive", "due_at", "id"], name="redrive_item_due", condition=Q(done_at=None)),
            # For the examples of the page.
            models.Index(fields=["redrive", "result", "id"], name="redrive_item_by_result"),
        ]

    def __str__(self) -> str:
        return f"letter {self.letter_id} of redrive {self.redrive_id}"
