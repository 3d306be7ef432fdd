from __future__ import annotations

from django.db import models
from django.db.models import Q, Value
from django.db.models.functions import Now
from uuid_utils.compat import uuid7

from .id_ranges import IdRangesField

SHARDS = 64
# After so many failed replays a dead letter is not replayed any more, until an operator lifts its quarantine.
MOST_REPLAYS = 3


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


class OperatorAction(models.Model):
    """What an operator did, or what somebody did with an operator's command: the audit trail.

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
        return self.consumer_group if self.topic is None else f"{self.consumer_group}: {self.topic}[{self.partition}]"


class PartitionInstruction(models.Model):
    """What an operator told the consumer of a retrying partition to do, and what became of it: the last one only.

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
        return f"{self.action} {self.consumer_group}: {self.topic}[{self.partition}]"


class HousekeepingRun(models.Model):
    """The last run of a housekeeping task."""

    task = models.CharField(max_length=64, primary_key=True)
    ran_at = models.DateTimeField()
    deleted = models.BigIntegerField(help_text="rows deleted by the last run")
    failure = models.TextField(db_default="", help_text="why the last run failed; empty: it did not")
    succeeded_at = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return f"{self.task} at {self.ran_at}"


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
    waits_for = models.TextField(db_default="", help_text="the outage that it waits for; empty: none")
    lease_owner = models.UUIDField(null=True)
    leased_until = models.DateTimeField(null=True)
    created_at = models.DateTimeField(db_default=Now())
    started_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField(null=True)

    class Meta:
        indexes = [
            # For the processes that look for work.
            models.Index(fields=["id"], name="redrive_with_work", condition=Q(state="running") | Q(wants_preview=True)),
            models.Index(fields=["ended_at"], name="redrive_ended", condition=~Q(ended_at=None)),
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
            # For the executor.
            models.Index(fields=["redrive", "id"], name="redrive_item_left", condition=Q(done_at=None)),
            # For the examples of the page.
            models.Index(fields=["redrive", "result", "id"], name="redrive_item_by_result"),
        ]

    def __str__(self) -> str:
        return f"letter {self.letter_id} of redrive {self.redrive_id}"
