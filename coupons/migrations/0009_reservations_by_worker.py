from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("coupons", "0008_append_only_controls")]

    operations = [
        migrations.AddField(
            model_name="reservation",
            name="by_worker",
            field=models.BooleanField(
                db_default=False, default=False, help_text="carried by issue_worker, not by Kafka"
            ),
        ),
        migrations.AddIndex(
            model_name="reservation",
            index=models.Index(
                condition=models.Q(("by_worker", True)), fields=["created_at"], name="reservation_by_worker"
            ),
        ),
    ]
