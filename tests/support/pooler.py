"""A real PgBouncer in transaction mode before the database of the test."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from django.db import connection

from devstack import ManagedProcess, wait_until
from devstack.ports import free_port

# Fewer than the sessions that a test opens, so that they share.
_SERVER_SESSIONS = 6
_START_SECONDS = 20.0


@dataclass(frozen=True)
class Pooler:
    """A running PgBouncer; ``port`` is its own."""

    port: int
    process: ManagedProcess
    config: Path

    @property
    def url(self) -> str:
        """The DATABASE_URL that leads through it."""
        return f"postgres://any@127.0.0.1:{self.port}/{connection.settings_dict['NAME']}"

    def point_at(self, server_port: int) -> None:
        """Use the server on another port of this machine from now on; clients stay connected."""
        self.config.write_text(_config(self.port, server_port))
        self.process.send_signal(signal.SIGHUP)


@contextmanager
def pgbouncer(folder: Path) -> Iterator[Pooler]:
    """Yields one before the database of the test; skips the test where PgBouncer is not installed."""
    program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', os.defpath)}{os.pathsep}/usr/sbin")
    if program is None:
        # Continuous integration installs it: see .ci/run.
        assert not os.environ.get("CI"), "pgbouncer is missing: .ci/run installs it"
        pytest.skip("pgbouncer is not installed (Debian: apt-get install pgbouncer)")
    port = free_port()
    config = folder / "pgbouncer.ini"
    config.write_text(_config(port, connection.settings_dict["PORT"]))
    # As for PostgreSQL: it refuses to run as root, and in a user namespace of its own it does not.
    as_user = ["unshare", "--user", "--map-user=1000", "--map-group=1000", "--"] if os.geteuid() == 0 else []
    process = ManagedProcess("pgbouncer", [*as_user, program, str(config)], None, folder, folder / "pgbouncer.log")
    with process:
        try:
            wait_until(lambda: _listens(port), _START_SECONDS, "pgbouncer does not listen")
            yield Pooler(port, process, config)
        finally:
            print(f"--- pgbouncer\n{process.log_tail(40)}", file=sys.stderr)


def _config(port: int, server_port: int) -> str:
    database = connection.settings_dict
    return f"""
[databases]
* = host={database["HOST"]} port={server_port} user={database["USER"]} password={database["PASSWORD"]}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {_SERVER_SESSIONS}
max_client_conn = 500
"""


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True
