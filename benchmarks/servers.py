"""The processes of the Procfile on the run's own database and topics, with their files in a folder that goes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

from django.conf import settings

from demo.processes import procfile_process, wait_until_ready
from devstack import ManagedProcess, wait_until
from devstack.ports import free_port, is_free

_APPLICATION = "couponsite.wsgi:application"
_BARE = "benchmarks.baseline:application"
_LISTEN_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Server:
    """A web server that answers on ``port``."""

    process: ManagedProcess
    port: int


@contextmanager
def folder() -> Iterator[Path]:
    """A folder for logs and plans."""
    with TemporaryDirectory(prefix="benchmarks-") as name:
        yield Path(name)


@contextmanager
def workers(place: Path, *roles: str) -> Iterator[dict[str, ManagedProcess]]:
    """Running processes of these roles, by role."""
    with ExitStack() as stack:
        yield {
            role: stack.enter_context(procfile_process(role, _environment(place), place / f"{role}.log"))
            for role in roles
        }


@contextmanager
def web(place: Path) -> Iterator[Server]:
    """The service's web server, ready."""
    port = free_port()
    process = procfile_process("web", _environment(place, port), place / "web.log")
    with process:
        wait_until_ready(process, port)
        yield Server(process, port)


@contextmanager
def bare_web(place: Path, *, middleware: bool) -> Iterator[Server]:
    """The same server with the same options around a view that does nothing, see ``bare``."""
    port = free_port()
    environment = {**_environment(place, port), "BARE_MIDDLEWARE": "" if middleware else "none"}
    process = procfile_process("web", environment, place / f"bare-{port}.log")
    if _APPLICATION not in process.argv[-1]:
        raise AssertionError(f"the Procfile's web process is not {_APPLICATION}")
    process.argv[-1] = process.argv[-1].replace(_APPLICATION, _BARE)
    with process:
        wait_until(lambda: not is_free(port), _LISTEN_SECONDS, "the bare server does not listen")
        yield Server(process, port)


def _environment(place: Path, port: int = 0) -> dict[str, str]:
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
        # Else the Procfile makes a folder, which stays.
        figures = place / f"figures-{port}"
        figures.mkdir()
        environment["PROMETHEUS_MULTIPROC_DIR"] = str(figures)
    return environment
