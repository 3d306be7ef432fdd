from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("coupons", "0003_ledger_and_notifications")]

    operations = [
        migrations.RunSQL(
            """
            CREATE FUNCTION coupons_ledger_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                RAISE EXCEPTION 'the ledger is append-only: add a step instead';
            END
            $$;
            CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON coupons_couponledgerentry
            FOR EACH ROW EXECUTE FUNCTION coupons_ledger_is_append_only();
            """,
            """
            DROP TRIGGER append_only ON coupons_couponledgerentry;
            DROP FUNCTION coupons_ledger_is_append_only();
            """,
        ),
    ]
