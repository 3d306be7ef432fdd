"""The name of this process, as PostgreSQL shows it in its list of clients."""

import sys
from pathlib import Path


def process_name() -> str:
    """Return ``coupons relay_outbox`` for that command, ``coupons web`` or ``coupons site`` for a server.

    At most 63 bytes.
    """
    if Path(sys.argv[0]).name in ("manage.py", "django-admin") and len(sys.argv) > 1:
        return f"coupons {sys.argv[1]}".encode("ascii", "replace").decode()[:63]
    return "coupons web" if any("asgi" in argument for argument in sys.argv) else "coupons site"


def is_server() -> bool:
    """Whether this process serves HTTP instead of running a command."""
    return process_name() in ("coupons web", "coupons site")
