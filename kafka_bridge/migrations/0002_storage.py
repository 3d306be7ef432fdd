from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("kafka_bridge", "0001_initial")]

    operations = [
        # Publishing leaves a dead version of every row; the default of a fifth of the table would be far too late
        # for the partial index that the relay reads from its head.
        migrations.RunSQL(
            "ALTER TABLE kafka_bridge_outboxmessage SET"
            " (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 5000)",
            "ALTER TABLE kafka_bridge_outboxmessage RESET"
            " (autovacuum_vacuum_scale_factor, autovacuum_vacuum_threshold)",
        ),
    ]
