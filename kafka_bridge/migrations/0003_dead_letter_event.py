from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("kafka_bridge", "0002_storage")]

    operations = [
        migrations.AddIndex(
            model_name="deadletter",
            index=models.Index(fields=["event_id"], name="dead_letter_event"),
        ),
    ]
