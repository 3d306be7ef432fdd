from django.db import migrations, models


class Migration(migrations.Migration):
    # The table may be large: the index is built while requests are decided. Repeatable after any break.
    atomic = False

    dependencies = [("coupons", "0015_replayed_requests")]

    operations = [
        migrations.SeparateDatabaseAndState(
            database_operations=[
                migrations.RunSQL(
                    [
                        "DROP INDEX CONCURRENTLY IF EXISTS one_replay_per_request",
                        """
                        CREATE UNIQUE INDEX CONCURRENTLY one_replay_per_request ON coupons_issuerequest (replay_of)
                        WHERE replay_of IS NOT NULL
                        """,
                    ],
                    "DROP INDEX CONCURRENTLY IF EXISTS one_replay_per_request",
                ),
            ],
            state_operations=[
                migrations.AddConstraint(
                    model_name="issuerequest",
                    constraint=models.UniqueConstraint(
                        condition=models.Q(("replay_of", None), _negated=True),
                        fields=("replay_of",),
                        name="one_replay_per_request",
                    ),
                ),
            ],
        ),
    ]
