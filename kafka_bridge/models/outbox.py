"""The outbox, who publishes it, and what is held."""

from __future__ import annotations

from django.db import models
from django.db.models import Q, Value
from django.db.models.functions import Now

from ..id_ranges import IdRangesField

SHARDS = 64


class OutboxMessage(models.Model):
    """A message to be published, written in the transaction of the change that it reports.

    ``key`` and ``payload`` are the exact bytes sent. ``headers`` is null for an event, whose CloudEvents headers
    are built from the columns; a dead letter stores its own (JSON, see ``cloudevents.encode_headers``).
    """

    id = models.BigAutoField(primary_key=True)
    event_id = models.UUIDField(unique=True)
    event_type = models.CharField(max_length=128)
    topic = models.CharField(max_length=249)
    key = models.BinaryField(null=True)
    payload = models.BinaryField(null=True)
    headers = models.BinaryField(null=True)
    traceparent = models.CharField(max_length=64, default="", db_default="")
    shard = models.PositiveSmallIntegerField()
    created_at = models.DateTimeField(db_default=Now())
    # Set only by relays of the version before and for rows of other transports, see ``outbox.published``.
    published_at = models.DateTimeField(null=True)

    class Meta:
        indexes = [
            # For relays of the version before.
            models.Index(fields=["id"], name="outbox_unpublished", condition=Q(published_at=None)),
        ]

    def __str__(self) -> str:
        return f"{self.event_type} {self.event_id}"


class RelayLease(models.Model):
    """Which relay publishes a shard of the outbox, until when (by the database's clock), and what is published.

    Of the shard's rows, those with an id up to ``position`` are published or held, and none can appear there. Up to
    ``sent_through`` they are published or held, except the ids in ``gaps``.
    """

    shard = models.PositiveSmallIntegerField(primary_key=True)
    owner = models.UUIDField(null=True)
    expires_at = models.DateTimeField(null=True)
    position = models.BigIntegerField(db_default=0)
    sent_through = models.BigIntegerField(db_default=0)
    gaps = IdRangesField(db_default=Value("{}"))

    def __str__(self) -> str:
        return f"shard {self.shard}"


class RelayMember(models.Model):
    """A running relay: their number determines how many shards each one leases.

    The row is valid as long as the relay's database session lives, and at most until ``expires_at``.
    """

    owner = models.UUIDField(primary_key=True)
    backend_pid = models.IntegerField()
    backend_started_at = models.DateTimeField()
    expires_at = models.DateTimeField()

    def __str__(self) -> str:
        return str(self.owner)


class HeldMessage(models.Model):
    """An outbox row that the position has passed and that is still to be sent. Only the shard's relay sends it."""

    class Reason(models.TextChoices):
        """Why the row waits, and what waits behind it."""

        # The topic accepts no messages, or an operator holds it: later rows of the topic wait too.
        TOPIC = "topic"
        # An operator holds the key: later rows of the key wait too.
        KEY = "key"
        # The row was sent and is to be sent again: nothing waits behind it.
        AGAIN = "again"

    message_id = models.BigIntegerField(primary_key=True)
    shard = models.PositiveSmallIntegerField()
    topic = models.CharField(max_length=249)
    reason = models.CharField(max_length=8, choices=Reason)
    attempts = models.PositiveIntegerField(db_default=0)
    last_error = models.TextField(db_default="")
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        indexes = [
            models.Index(fields=["topic", "message_id"], name="held_of_topic"),
            models.Index(fields=["message_id"], name="held_for_its_key", condition=Q(reason="key")),
        ]

    def __str__(self) -> str:
        return f"{self.message_id} ({self.reason} {self.topic})"


class OutboxHold(models.Model):
    """A topic, or a key of a topic, that an operator holds: its rows are kept back until the hold is deleted."""

    topic = models.CharField(max_length=249)
    key = models.BinaryField(null=True, help_text="null: the whole topic")
    reason = models.CharField(max_length=500)
    actor = models.CharField(max_length=150, db_default="", help_text="who did it")
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        permissions = [("hold_messages", "Can hold, release and retry messages of the outbox")]
        constraints = [
            models.UniqueConstraint(fields=["topic", "key"], nulls_distinct=False, name="one_hold_per_topic_or_key"),
        ]

    def __str__(self) -> str:
        return f"{self.topic} {self.key!r}"
