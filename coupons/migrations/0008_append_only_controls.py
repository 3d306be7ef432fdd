from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("coupons", "0007_couponcontrol")]

    operations = [
        migrations.RunSQL(
            """
            CREATE FUNCTION coupons_controls_are_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                RAISE EXCEPTION 'controls are append-only: add another control instead';
            END
            $$;
            CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON coupons_couponcontrol
            FOR EACH ROW EXECUTE FUNCTION coupons_controls_are_append_only();
            """,
            """
            DROP TRIGGER append_only ON coupons_couponcontrol;
            DROP FUNCTION coupons_controls_are_append_only();
            """,
        ),
    ]
