from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [('kafka_bridge', '0013_indexes_for_redrives')]

    operations = [
        migrations.AlterField(
            model_name='redrive',
            name='waits_for',
            field=models.TextField(
                db_default='', help_text='the outage that it waits for, or the error that stopped it; empty: none'
            ),
        ),
        # What only SQL by hand can have written: it would keep the constraint from being made.
        migrations.RunSQL(
            'UPDATE kafka_bridge_redrive SET rate = least(greatest(rate, 1), 1000) WHERE rate NOT BETWEEN 1 AND 1000',
            migrations.RunSQL.noop,
        ),
        migrations.AddConstraint(
            model_name='redrive',
            constraint=models.CheckConstraint(
                condition=models.Q(('rate__range', (1, 1000))), name='redrive_rate_in_range'
            ),
        ),
    ]
