from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("coupons", "0005_admissions")]

    operations = [
        # Every row is deleted soon: its leftovers must not wait for a share of a table that is nearly empty.
        migrations.RunSQL(
            "ALTER TABLE coupons_reservation SET"
            " (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000)",
            "ALTER TABLE coupons_reservation RESET (autovacuum_vacuum_scale_factor, autovacuum_vacuum_threshold)",
        ),
    ]
