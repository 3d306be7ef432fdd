"""Writes the dump of the old version, on the services that the environment names. For a new ``REVISION``:

SECRET_KEY=$(python -c 'import secrets; print(secrets.token_hex())') DEBUG= \
    python -m devstack run --name fill --fresh -- python -m tests.upgrade
"""

import os
import tempfile
from pathlib import Path

import django
from django.conf import settings


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "couponsite.settings")
    django.setup()
    # Imported after setup(): its modules read the settings.
    from tests.upgrade import fill, filled

    settings.SECRET_KEY = filled.SECRET_KEY
    settings.KAFKA_TOPIC_PREFIX = "filled-"
    with tempfile.TemporaryDirectory() as folder, filled.own_database():
        fill.fill(Path(folder))


if __name__ == "__main__":
    main()
