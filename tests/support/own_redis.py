"""Redis servers of a test's own: the lanes of the suite share another one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from django.conf import settings as project
from django.core.cache import caches
from pytest_django import Settings

from devstack import Part, Stack


@contextmanager
def redis_server(name: str, folder: Path) -> Iterator[Part]:
    """A Redis that only the caller uses, with its files below ``folder``."""
    environ = {"DATABASE_URL": "postgres://given", "KAFKA_BOOTSTRAP_SERVERS": project.KAFKA_BOOTSTRAP_SERVERS}
    stack = Stack(name, root=folder, environ=environ, report=print)
    with stack.used():
        yield stack.part("redis")


@contextmanager
def on_redis(server: Part, settings: Settings) -> Iterator[None]:
    """Have this process use ``server``."""
    default = settings.CACHES["default"]
    location = f"redis://127.0.0.1:{server.port}/0"
    settings.CACHES = {**settings.CACHES, "default": {**default, "LOCATION": location}}
    yield
    caches["default"].close()
