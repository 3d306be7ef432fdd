"""The name of this process, as PostgreSQL shows it in its list of clients."""

import sys
from pathlib import Path


def process_name() -> str:
    """Return ``coupons relay_outbox`` for that command, ``coupons web`` for the server; at most 63 bytes."""
    runs_command = Path(sys.argv[0]).name in ("manage.py", "django-admin") and len(sys.argv) > 1
    return f"coupons {sys.argv[1] if runs_command else 'web'}".encode("ascii", "replace").decode()[:63]
