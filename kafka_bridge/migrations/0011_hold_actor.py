from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("kafka_bridge", "0010_redrives")]

    operations = [
        migrations.AlterModelOptions(
            name="outboxhold",
            options={"permissions": [("hold_messages", "Can hold, release and retry messages of the outbox")]},
        ),
        migrations.AddField(
            model_name="outboxhold",
            name="actor",
            field=models.CharField(db_default="", help_text="who did it", max_length=150),
        ),
    ]
