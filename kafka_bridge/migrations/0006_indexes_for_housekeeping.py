from django.contrib.postgres.operations import AddIndexConcurrently
from django.db import migrations, models


class Migration(migrations.Migration):
    # These tables may be large: consumers go on writing them meanwhile.
    atomic = False

    dependencies = [("kafka_bridge", "0005_alarms_and_samples")]

    operations = [
        AddIndexConcurrently(
            model_name="deadletter",
            index=models.Index(condition=models.Q(("closed_at", None)), fields=["id"], name="dead_letter_open"),
        ),
        AddIndexConcurrently(
            model_name="deadletter",
            index=models.Index(
                condition=models.Q(("closed_at", None), _negated=True),
                fields=["closed_at"],
                name="dead_letter_closed",
            ),
        ),
        AddIndexConcurrently(
            model_name="processedevent",
            index=models.Index(fields=["consumer_group", "processed_at"], name="inbox_by_time"),
        ),
    ]
