from django.db import migrations, models


class Migration(migrations.Migration):
    # Its index is built in 0016, which cannot be one transaction.

    dependencies = [("coupons", "0014_rehearsals")]

    operations = [
        migrations.AddField(
            model_name="issuerequest",
            name="replay_of",
            field=models.UUIDField(help_text="the failed request whose dead letter was replayed", null=True),
        ),
    ]
