from django.contrib.postgres.operations import AddIndexConcurrently
from django.db import migrations, models


class Migration(migrations.Migration):
    # The table may be large: consumers go on writing it meanwhile.
    atomic = False

    dependencies = [("kafka_bridge", "0007_operator_actions")]

    operations = [
        migrations.AlterModelOptions(
            name="deadletter",
            options={
                "permissions": [
                    ("redrive_dead_letters", "Can replay dead letters"),
                    ("discard_dead_letters", "Can discard dead letters"),
                ]
            },
        ),
        migrations.AddField(
            model_name="deadletter", name="traceback", field=models.TextField(db_default="")
        ),
        migrations.AddField(
            model_name="deadletter",
            name="last_seen_at",
            field=models.DateTimeField(
                help_text="when the message failed again, redelivered or replayed; null: it did not", null=True
            ),
        ),
        migrations.AddField(
            model_name="deadletter",
            name="replays",
            field=models.PositiveIntegerField(
                db_default=0, help_text="replays since it was written or released"
            ),
        ),
        migrations.AddField(
            model_name="deadletter",
            name="last_error",
            field=models.TextField(db_default="", help_text="the error of the last replay that failed"),
        ),
        migrations.AddField(
            model_name="deadletter",
            name="outcome",
            field=models.CharField(
                blank=True,
                choices=[("replayed", "Replayed"), ("discarded", "Discarded")],
                db_default="",
                max_length=16,
            ),
        ),
        migrations.AddField(model_name="deadletter", name="lease_owner", field=models.UUIDField(null=True)),
        migrations.AddField(model_name="deadletter", name="leased_until", field=models.DateTimeField(null=True)),
        AddIndexConcurrently(
            model_name="deadletter",
            index=models.Index(fields=["consumer_group", "error_class", "id"], name="dead_letter_by_group_error"),
        ),
        AddIndexConcurrently(
            model_name="deadletter",
            index=models.Index(fields=["consumer_group", "id"], name="dead_letter_by_group"),
        ),
        AddIndexConcurrently(
            model_name="deadletter",
            index=models.Index(fields=["error_class", "id"], name="dead_letter_by_error"),
        ),
        AddIndexConcurrently(
            model_name="deadletter",
            index=models.Index(fields=["topic", "id"], name="dead_letter_by_topic"),
        ),
        AddIndexConcurrently(
            model_name="deadletter",
            index=models.Index(
                condition=models.Q(("closed_at", None), _negated=True),
                fields=["outcome", "id"],
                name="dead_letter_by_outcome",
            ),
        ),
        AddIndexConcurrently(
            model_name="deadletter",
            index=models.Index(
                condition=models.Q(("closed_at", None), ("replays__gte", 3)),
                fields=["id"],
                name="dead_letter_quarantined",
            ),
        ),
    ]
