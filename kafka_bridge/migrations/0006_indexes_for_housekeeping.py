from django.db import migrations, models

from common.postgres.concurrent_indexes import RebuildIndexConcurrently


class Migration(migrations.Migration):
    # These tables may be large: consumers go on writing them meanwhile. Repeatable after any break.
    atomic = False

    dependencies = [("kafka_bridge", "0005_alarms_and_samples")]

    operations = [
        RebuildIndexConcurrently(
            model_name="deadletter",
            index=models.Index(condition=models.Q(("closed_at", None)), fields=["id"], name="dead_letter_open"),
        ),
        RebuildIndexConcurrently(
            model_name="deadletter",
            index=models.Index(
                condition=models.Q(("closed_at", None), _negated=True),
                fields=["closed_at"],
                name="dead_letter_closed",
            ),
        ),
        RebuildIndexConcurrently(
            model_name="processedevent",
            index=models.Index(fields=["consumer_group", "processed_at"], name="inbox_by_time"),
        ),
    ]
