"""What consumers keep: the inbox, and messages that they could not handle."""

from __future__ import annotations

from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

# After so many failed replays a dead letter is not replayed any more, until an operator lifts its quarantine.
MOST_REPLAYS = 3


class ProcessedEvent(models.Model):
    """The inbox: an event that a consumer group has handled, written in the transaction of its effect.

    Rows are kept longer than the retention of their topic, so that reading the topic again repeats no effect.
    """

    pk = models.CompositePrimaryKey("consumer_group", "event_id")
    consumer_group = models.CharField(max_length=64)
    event_id = models.UUIDField()
    processed_at = models.DateTimeField(db_default=Now())

    class Meta:
        indexes = [
            # For pruning, group by group. Not BRIN: new rows fill the pages of deleted ones, after which every range of
            # pages holds old and new times and the index excludes nothing.
            models.Index(fields=["consumer_group", "processed_at"], name="inbox_by_time"),
        ]

    def __str__(self) -> str:
        return f"{self.consumer_group}: {self.event_id}"


class DeadLetter(models.Model):
    """A message that one consumer group could not handle, with its original bytes and the error.

    The message and the first error are evidence: replays change only the columns about replays.
    """

    class Outcome(models.TextChoices):
        """Why a letter is closed; empty: it is open, or was closed by the version before."""

        REPLAYED = "replayed"
        DISCARDED = "discarded"

    id = models.BigAutoField(primary_key=True)
    consumer_group = models.CharField(max_length=64)
    topic = models.CharField(max_length=249)
    partition = models.IntegerField()
    offset = models.BigIntegerField()
    message_timestamp = models.BigIntegerField(help_text="milliseconds since 1970, as Kafka has it")
    event_type = models.CharField(max_length=128)
    event_id = models.UUIDField(null=True)
    key = models.BinaryField(null=True)
    payload = models.BinaryField(null=True)
    headers = models.BinaryField(help_text="JSON: [[name, base64 or null], ...]")
    error_class = models.CharField(max_length=200)
    error_message = models.TextField()
    # The end of it, at most ``dead_letters.TRACEBACK_CHARACTERS``; empty: the error was not raised here.
    traceback = models.TextField(db_default="")
    created_at = models.DateTimeField(db_default=Now())
    last_seen_at = models.DateTimeField(
        null=True, help_text="when the message failed again, redelivered or replayed; null: it did not"
    )
    replays = models.PositiveIntegerField(db_default=0, help_text="replays since it was written or released")
    last_error = models.TextField(db_default="", help_text="the error of the last replay that failed")
    outcome = models.CharField(max_length=16, choices=Outcome, blank=True, db_default="")
    closed_at = models.DateTimeField(null=True, help_text="when it was replayed or discarded; null: open")
    # Which replay makes the letter's call, until when (by the database's clock), see ``redriving.replay``.
    lease_owner = models.UUIDField(null=True)
    leased_until = models.DateTimeField(null=True)

    class Meta:
        permissions = [
            ("redrive_dead_letters", "Can replay dead letters"),
            ("discard_dead_letters", "Can discard dead letters"),
        ]
        constraints = [
            # A redelivered message is the same dead letter. The timestamp distinguishes messages at the same offset
            # of a topic that was deleted and recreated.
            models.UniqueConstraint(
                fields=["consumer_group", "topic", "partition", "offset", "message_timestamp"],
                name="dead_letter_once",
            ),
        ]
        indexes = [
            # For the admin's search by event id.
            models.Index(fields=["event_id"], name="dead_letter_event"),
            # For the alert and the dashboard, which count the open ones, and for pruning the closed ones.
            models.Index(fields=["id"], name="dead_letter_open", condition=Q(closed_at=None)),
            models.Index(fields=["closed_at"], name="dead_letter_closed", condition=~Q(closed_at=None)),
            # For the filters of the admin and of redrives, newest first.
            models.Index(fields=["consumer_group", "error_class", "id"], name="dead_letter_by_group_error"),
            models.Index(fields=["consumer_group", "id"], name="dead_letter_by_group"),
            models.Index(fields=["error_class", "id"], name="dead_letter_by_error"),
            models.Index(fields=["topic", "id"], name="dead_letter_by_topic"),
            models.Index(fields=["outcome", "id"], name="dead_letter_by_outcome", condition=~Q(closed_at=None)),
            models.Index(
                fields=["id"], name="dead_letter_quarantined", condition=Q(closed_at=None, replays__gte=MOST_REPLAYS)
            ),
        ]

    def __str__(self) -> str:
        return f"{self.consumer_group}: {self.topic}[{self.partition}]@{self.offset}"

    @property
    def state(self) -> str:
        """``open``, ``quarantined``, ``replayed``, ``discarded``; ``closed``: by the version before."""
        if self.closed_at is not None:
            return self.outcome or "closed"
        return "quarantined" if self.replays >= MOST_REPLAYS else "open"
