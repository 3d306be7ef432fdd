from datetime import UTC, datetime
from typing import Any

from django.db import migrations, models

_EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
_TOO_LATE = datetime(9999, 1, 1, tzinfo=UTC)
_LAST = "9998-12-31T23:59:59.999999Z"

# A row outside the limits would fail every later change of its stock. The nearest time within them decides every
# request alike: what opened before 1970 is open, what closes after 9998 is not closed in anybody's lifetime.
_CLAMP = """
    UPDATE coupons_coupon
    SET opens_at = least(greatest(opens_at, %(first)s), %(last)s),
        closes_at = CASE WHEN closes_at IS NOT NULL THEN least(greatest(closes_at, %(first)s), %(last)s) END
    WHERE opens_at < %(first)s OR opens_at > %(last)s OR closes_at < %(first)s OR closes_at > %(last)s
    RETURNING coupon_type
"""

def clamp(apps: Any, schema_editor: Any) -> None:
    with schema_editor.connection.cursor() as cursor:
        cursor.execute(_CLAMP, {"first": _EARLIEST, "last": _LAST})
        for (coupon_type,) in cursor.fetchall():
            print(f"\n  coupon {coupon_type}: times outside 1970 to 9998 were set to the nearest within", end="")


class Migration(migrations.Migration):

    dependencies = [
        ("coupons", "0010_admission_choices"),
    ]

    operations = [
        migrations.RunPython(clamp, migrations.RunPython.noop),
        migrations.AddConstraint(
            model_name="coupon",
            constraint=models.CheckConstraint(
                name="coupon_times",
                condition=models.Q(("opens_at__gte", _EARLIEST), ("opens_at__lt", _TOO_LATE))
                & (
                    models.Q(("closes_at", None))
                    | models.Q(("closes_at__gte", _EARLIEST), ("closes_at__lt", _TOO_LATE))
                ),
            ),
        ),
    ]
