from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("coupons", "0001_initial")]

    operations = [
        # A batch updates the stock of its coupon; room on the page keeps that off the indexes (HOT).
        migrations.RunSQL(
            "ALTER TABLE coupons_coupon SET (fillfactor = 50)",
            "ALTER TABLE coupons_coupon RESET (fillfactor)",
        ),
    ]
