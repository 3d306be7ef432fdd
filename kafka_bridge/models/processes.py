"""Running processes, what they count, and what is known of Kafka."""

from __future__ import annotations

from django.db import models
from django.db.models import Q, Value
from django.db.models.functions import Now


class ProcessHeartbeat(models.Model):
    """A running process; times are by the database's clock."""

    id = models.UUIDField(primary_key=True)
    role = models.CharField(max_length=64)
    host = models.CharField(max_length=200)
    pid = models.IntegerField()
    version = models.CharField(max_length=64, db_default="")
    memory_bytes = models.BigIntegerField(null=True)
    started_at = models.DateTimeField()
    seen_at = models.DateTimeField(help_text="when the process last said that it lives")
    turned_at = models.DateTimeField(help_text="when its loop last made a pass")
    polled_at = models.DateTimeField(null=True, help_text="when its consumers last polled Kafka")
    # Names of the consumer groups that it runs, [] for other processes.
    groups = models.JSONField(db_default=Value([], models.JSONField()))
    # What its consumers hold, see ``operating.heartbeat.HeldPartition``.
    partitions = models.JSONField(db_default=Value([], models.JSONField()))

    def __str__(self) -> str:
        return f"{self.role} on {self.host} ({self.pid})"


class Sample(models.Model):
    """What one process counted for one source within a few seconds, or all processes within a minute.

    Rows are only inserted: a shared row of totals would be a lock in common. The housekeeper folds old ones to minutes.
    """

    id = models.BigAutoField(primary_key=True)
    # Null: folded, the sum of all processes.
    process_id = models.UUIDField(null=True)
    source = models.CharField(max_length=64, help_text="a consumer group, relay, or accept")
    taken_at = models.DateTimeField(db_default=Now())
    seconds = models.FloatField(help_text="the time that the sample covers")
    # {"<counter>": number, ...}, see ``operating.samples``.
    counts = models.JSONField()

    class Meta:
        indexes = [
            # For the sums of the last minutes, and for pruning.
            models.Index(fields=["taken_at"], name="sample_by_time"),
            # For folding: beside a month of folded rows the oldest other is found at once.
            models.Index(fields=["taken_at"], name="sample_not_folded", condition=~Q(process_id=None)),
        ]

    def __str__(self) -> str:
        return f"{self.source} at {self.taken_at}"


class SweptPartition(models.Model):
    """The lag of a group's partition that no living process reports, as the sweep read it, see ``lag``.

    It has a row for each such partition; a row that cannot be read again stays as it is.
    """

    pk = models.CompositePrimaryKey("consumer_group", "topic", "partition")
    consumer_group = models.CharField(max_length=64)
    topic = models.CharField(max_length=249, help_text="with the prefix")
    partition = models.IntegerField()
    messages = models.BigIntegerField(help_text="from the committed offset to the end")
    oldest_at = models.DateTimeField(null=True, help_text="timestamp of the first of these messages; null: none")
    read_at = models.DateTimeField()

    def __str__(self) -> str:
        return f"{self.consumer_group}: {self.topic}[{self.partition}]"


class BrokerState(models.Model):
    """What the brokers answered last to a request for the metadata; one row, see ``operating.broker_watch``."""

    id = models.PositiveSmallIntegerField(primary_key=True)
    asked_at = models.DateTimeField()
    answered_at = models.DateTimeField(null=True)
    silences = models.IntegerField(help_text="requests without an answer since the last one that had an answer")
    few_answers = models.IntegerField(help_text="answers in a row with fewer brokers than expected")
    brokers = models.JSONField(help_text="the brokers that are there, as of the last answer: '1 at host:port'")
    problems = models.JSONField(help_text="partitions of ours that cannot be written, as of the last answer")

    def __str__(self) -> str:
        return f"{len(self.brokers)} brokers at {self.answered_at}"


class HousekeepingRun(models.Model):
    """The last run of a housekeeping task."""

    task = models.CharField(max_length=64, primary_key=True)
    ran_at = models.DateTimeField()
    deleted = models.BigIntegerField(help_text="rows deleted by the last run")
    failure = models.TextField(db_default="", help_text="why the last run failed; empty: it did not")
    succeeded_at = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return f"{self.task} at {self.ran_at}"
