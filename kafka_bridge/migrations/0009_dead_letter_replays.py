from django.db import migrations, models


class Migration(migrations.Migration):
    # Its indexes are built in 0013, which cannot be one transaction.

    dependencies = [("kafka_bridge", "0008_group_pauses")]

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
    ]
