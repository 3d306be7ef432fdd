from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("coupons", "0013_time_of_publishing")]

    operations = [
        migrations.AddField(
            model_name="coupon",
            name="rehearsal",
            field=models.BooleanField(db_default=False, default=False, editable=False),
        ),
    ]
