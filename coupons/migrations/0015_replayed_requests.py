from django.db import migrations, models


class Migration(migrations.Migration):
    # The table may be large: the index is built while requests are decided.
    atomic = False

    dependencies = [("coupons", "0013_time_of_publishing")]

    operations = [
        migrations.AddField(
            model_name="issuerequest",
            name="replay_of",
            field=models.UUIDField(help_text="the failed request whose dead letter was replayed", null=True),
        ),
        migrations.SeparateDatabaseAndState(
            database_operations=[
                migrations.RunSQL(
                    """
                    CREATE UNIQUE INDEX CONCURRENTLY one_replay_per_request ON coupons_issuerequest (replay_of)
                    WHERE replay_of IS NOT NULL
                    """,
                    "DROP INDEX CONCURRENTLY one_replay_per_request",
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
