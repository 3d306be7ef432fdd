from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("coupons", "0012_rollout")]

    operations = [
        migrations.AddField(
            model_name="issuerequest",
            name="published_at",
            field=models.DateTimeField(help_text="the timestamp of its message in Kafka", null=True),
        ),
    ]
