import django.core.validators
import django.db.models.functions.datetime
from django.db import migrations, models

# The flags were rows of django-waffle: everyone "yes" was 100 %, "no" 0 %, otherwise the percentage counted, none as 0.
# Its tables stay: during a rolling deploy, processes of the version before still read them.
_FROM_WAFFLE = """
    DO $$
    BEGIN
        IF to_regclass('waffle_flag') IS NOT NULL THEN
            INSERT INTO coupons_rolloutchange (flag, percent, reason, actor)
            SELECT name,
                   CASE WHEN everyone THEN 100 WHEN NOT everyone THEN 0 ELSE greatest(coalesce(percent, 0), 0) END,
                   left('flag of django-waffle: ' || note, 500), 'migration'
            FROM waffle_flag
            WHERE name = 'issue-worker' OR starts_with(name, 'issue-worker-')
            ORDER BY id;
        END IF;
    END
    $$
"""

_APPEND_ONLY = """
    CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON coupons_rolloutchange
    FOR EACH ROW EXECUTE FUNCTION coupons_controls_are_append_only()
"""


class Migration(migrations.Migration):

    dependencies = [
        ("coupons", "0011_coupon_times"),
    ]

    operations = [
        migrations.AlterField(
            model_name="couponcontrol",
            name="quantity",
            field=models.BigIntegerField(help_text="of a restock: the units added", null=True),
        ),
        migrations.CreateModel(
            name="RolloutChange",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                (
                    "flag",
                    models.CharField(
                        help_text="issue-worker, or issue-worker-<coupon type>, which wins for its coupon",
                        max_length=100,
                    ),
                ),
                (
                    "percent",
                    models.DecimalField(
                        blank=True,
                        decimal_places=1,
                        help_text="of the users whose requests for gate coupons go to issue_worker instead of Kafka; empty: no flag",
                        max_digits=4,
                        null=True,
                        validators=[
                            django.core.validators.MinValueValidator(0),
                            django.core.validators.MaxValueValidator(100),
                        ],
                    ),
                ),
                ("reason", models.CharField(blank=True, default="", max_length=500)),
                ("actor", models.CharField(editable=False, help_text="who did it", max_length=150)),
                (
                    "created_at",
                    models.DateTimeField(db_default=django.db.models.functions.datetime.Now(), editable=False),
                ),
            ],
            options={
                "indexes": [models.Index(fields=["flag", "id"], name="rollout_by_flag")],
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(("percent", None)) | models.Q(("percent__range", (0, 100))),
                        name="rollout_percent",
                    )
                ],
            },
        ),
        migrations.RunSQL(_APPEND_ONLY, migrations.RunSQL.noop),
        migrations.RunSQL(_FROM_WAFFLE, migrations.RunSQL.noop),
    ]
