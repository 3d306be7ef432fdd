"""What this process is, for the server sides that list their clients."""

import sys
from pathlib import Path


def process_name() -> str:
    """``coupons relay_outbox`` for a command, ``coupons web`` for the server; at most 63 bytes."""
    runs_command = Path(sys.argv[0]).name in ("manage.py", "django-admin") and len(sys.argv) > 1
    return f"coupons {sys.argv[1] if runs_command else 'web'}".encode("ascii", "replace").decode()[:63]
