"""Starts processes of the Procfile on the temporary database and topics, with their files in a temporary folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

from django.conf import settings

from demo.processes import WebProcess, procfile_process, wait_until_ready
from devstack import ManagedProcess, wait_until
from devstack.ports import free_port, is_free

# The empty views get what a plain deployment of Django on this server has: a process per core, default threads.
_BARE = ("-m", "granian", "--interface", "wsgi", "--workers", "2", "benchmarks.baseline:application")
_LISTEN_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Server:
    """A running web server and its port; ``site`` is the process behind it, None if it has none."""

    process: ManagedProcess
    port: int
    site: ManagedProcess | None = None


@contextmanager
def folder() -> Iterator[Path]:
    """Yield a temporary folder for logs and plans."""
    with TemporaryDirectory(prefix="benchmarks-") as name:
        yield Path(name)


@contextmanager
def workers(directory: Path, *roles: str) -> Iterator[dict[str, ManagedProcess]]:
    """Start processes of these roles and yield them by role."""
    with ExitStack() as stack:
        yield {
            role: stack.enter_context(procfile_process(role, process_environment(directory), directory / f"{role}.log"))
            for role in roles
        }


@contextmanager
def web(directory: Path) -> Iterator[Server]:
    """Start the service's web server, with its site, and yield it when it is ready."""
    port = free_port()
    process = WebProcess(process_environment(directory, port), directory / "web.log")
    with process:
        wait_until_ready(process, port)
        yield Server(process, port, process.site)


@contextmanager
def bare_web(directory: Path, *, middleware: bool) -> Iterator[Server]:
    """Start a server of empty views, see ``baseline``."""
    port = free_port()
    environment = {**process_environment(directory, port), "BARE_MIDDLEWARE": "" if middleware else "none"}
    process = ManagedProcess(
        "bare",
        [sys.executable, *_BARE, "--port", str(port)],
        {**os.environ, **environment},
        Path(__file__).resolve().parents[1],
        directory / f"bare-{port}.log",
    )
    with process:
        wait_until(lambda: not is_free(port), _LISTEN_SECONDS, "the bare server does not listen")
        yield Server(process, port)


def process_environment(directory: Path, port: int = 0) -> dict[str, str]:
    """Return what a process needs to work on the temporary database and topics; ``port``: that of a web server."""
    database = urlsplit(os.environ["DATABASE_URL"])._replace(path=f"/{settings.DATABASES['default']['NAME']}")
    environment = {
        "DATABASE_URL": database.geturl(),
        "KAFKA_TOPIC_PREFIX": settings.KAFKA_TOPIC_PREFIX,
        "SECRET_KEY": settings.SECRET_KEY,
        "DEBUG": "",
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "METRICS_PORT": "0",
    }
    if port:
        # Otherwise the Procfile's mktemp makes a folder that is never deleted.
        metrics = directory / f"figures-{port}"
        metrics.mkdir()
        environment["PROMETHEUS_MULTIPROC_DIR"] = str(metrics)
    return environment
