"""What operators did, paused and instructed."""

from __future__ import annotations

from django.db import models
from django.db.models import Q
from django.db.models.functions import Now


class OperatorAction(models.Model):
    """What an operator did, on the pages or with a command: the audit trail.

    Append-only: the database refuses updates and deletes. Written by ``operating.audit`` in the transaction of the
    change. Rows are kept.
    """

    id = models.BigAutoField(primary_key=True)
    actor = models.CharField(max_length=150, help_text="who did it")
    # "<subject>.<verb>", such as "dead_letter.discard"; each is declared by the module that records it.
    action = models.CharField(max_length=64)
    subject = models.CharField(max_length=300, help_text="what it was done to")
    reason = models.CharField(max_length=500, db_default="")
    # What the action changed, by name; null: there was nothing, or there is nothing any more.
    before = models.JSONField(null=True)
    after = models.JSONField(null=True)
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        indexes = [
            # For the searches of the audit page, newest first.
            models.Index(fields=["action", "id"], name="operator_action_by_action"),
            models.Index(fields=["actor", "id"], name="operator_action_by_actor"),
            models.Index(fields=["subject", "id"], name="operator_action_by_subject"),
        ]

    def __str__(self) -> str:
        return f"{self.action} {self.subject} by {self.actor}"


def target_name(group: str, topic: str | None, partition: int | None) -> str:
    """Return the name of what is paused or instructed: ``group``, or ``group: topic[0]``."""
    return group if topic is None else f"{group}: {topic}[{partition}]"


class GroupPause(models.Model):
    """What an operator has paused: a consumer group, a partition of it, or a worker such as the relay.

    All processes obey within two seconds, see ``operating.pause_watch``; the pause lasts until it is deleted.
    """

    consumer_group = models.CharField(max_length=64, help_text="a consumer group's name, or that of a worker")
    topic = models.CharField(max_length=249, null=True, help_text="with the prefix; null: the whole group")  # noqa: DJ001
    partition = models.IntegerField(null=True)
    reason = models.CharField(max_length=500)
    actor = models.CharField(max_length=150, help_text="who did it")
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        permissions = [("pause_groups", "Can pause and resume consumer groups, the relay and workers")]
        constraints = [
            models.UniqueConstraint(
                fields=["consumer_group", "topic", "partition"],
                nulls_distinct=False,
                name="one_pause_per_group_or_part",
            ),
            models.CheckConstraint(
                condition=Q(topic=None, partition=None) | Q(topic__isnull=False, partition__gte=0),
                name="pause_of_a_group_or_a_partition",
            ),
        ]

    def __str__(self) -> str:
        return target_name(self.consumer_group, self.topic, self.partition)


class PartitionInstruction(models.Model):
    """An operator's instruction for the consumer of a retrying partition, and what became of it: the last one only.

    The consumer that holds the partition obeys within two seconds, and fills in ``answer``.
    """

    class Action(models.TextChoices):
        # Try the batch again now.
        RETRY = "retry", "try again"
        # Write as many dead letters again as the poison limit allows.
        CONTINUE = "continue", "go on"
        # Dead-letter the message at ``offset``, if the partition still waits there.
        DEAD_LETTER = "dead_letter", "dead-letter"

    pk = models.CompositePrimaryKey("consumer_group", "topic", "partition")
    consumer_group = models.CharField(max_length=64)
    topic = models.CharField(max_length=249, help_text="with the prefix")
    partition = models.IntegerField()
    # Tells an instruction from the one that replaced it.
    instruction_id = models.UUIDField()
    action = models.CharField(max_length=16, choices=Action)
    offset = models.BigIntegerField(null=True)
    reason = models.CharField(max_length=500)
    actor = models.CharField(max_length=150, help_text="who did it")
    created_at = models.DateTimeField(db_default=Now())
    answered_at = models.DateTimeField(null=True)
    answer = models.TextField(db_default="")

    def __str__(self) -> str:
        return f"{self.action} {target_name(self.consumer_group, self.topic, self.partition)}"
