from django.contrib.postgres.operations import RemoveIndexConcurrently
from django.db import migrations, models

from common.postgres.concurrent_indexes import RebuildIndexConcurrently


class Migration(migrations.Migration):
    # The tables may be large: consumers and the housekeeper go on writing them meanwhile. Repeatable after any break.
    atomic = False

    dependencies = [("kafka_bridge", "0012_clearing_alerts")]

    operations = [
        RebuildIndexConcurrently(
            model_name="deadletter",
            index=models.Index(fields=["consumer_group", "error_class", "id"], name="dead_letter_by_group_error"),
        ),
        RebuildIndexConcurrently(
            model_name="deadletter",
            index=models.Index(fields=["consumer_group", "id"], name="dead_letter_by_group"),
        ),
        RebuildIndexConcurrently(
            model_name="deadletter",
            index=models.Index(fields=["error_class", "id"], name="dead_letter_by_error"),
        ),
        RebuildIndexConcurrently(
            model_name="deadletter",
            index=models.Index(fields=["topic", "id"], name="dead_letter_by_topic"),
        ),
        RebuildIndexConcurrently(
            model_name="deadletter",
            index=models.Index(
                condition=models.Q(("closed_at", None), _negated=True),
                fields=["outcome", "id"],
                name="dead_letter_by_outcome",
            ),
        ),
        RebuildIndexConcurrently(
            model_name="deadletter",
            index=models.Index(
                condition=models.Q(("closed_at", None), ("replays__gte", 3)),
                fields=["id"],
                name="dead_letter_quarantined",
            ),
        ),
        RebuildIndexConcurrently(
            model_name="redriveitem",
            index=models.Index(
                condition=models.Q(("done_at", None)), fields=["redrive", "due_at", "id"], name="redrive_item_due"
            ),
        ),
        RebuildIndexConcurrently(
            model_name="redrive",
            index=models.Index(
                condition=models.Q(("ended_at", None), ("started_at", None)),
                fields=["created_at"],
                name="redrive_not_started",
            ),
        ),
        RemoveIndexConcurrently(model_name="redriveitem", name="redrive_item_left"),
    ]
