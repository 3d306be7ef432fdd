"""Description of the machine: rates are comparable only on the same one."""

from __future__ import annotations

import os
import platform
import tempfile
import time
from pathlib import Path
from statistics import median

from confluent_kafka import libversion
from confluent_kafka.admin import AdminClient
from django.conf import settings
from django.db import connection
from django_redis import get_redis_connection

_FLUSHES = 50
_BLOCK = bytes(8192)


def machine() -> str:
    """Return one line: processor, cores, versions of the parts, and the disk's flush time."""
    brokers = AdminClient({"bootstrap.servers": settings.KAFKA_BOOTSTRAP_SERVERS}).list_topics(timeout=10).brokers
    with connection.cursor() as cursor:
        cursor.execute("SHOW server_version")
        (postgresql,) = cursor.fetchone() or ("?",)
    redis = get_redis_connection("default").info("server")
    # Valkey's redis_version is the Redis that it is compatible with.
    redis_name = f"Valkey {redis['valkey_version']}" if "valkey_version" in redis else f"Redis {redis['redis_version']}"
    return ", ".join(
        (
            f"{_processor()}, {len(os.sched_getaffinity(0))} cores",
            f"Python {platform.python_version()}",
            f"PostgreSQL {postgresql.split()[0]}",
            redis_name,
            # The protocol does not give the broker's version.
            f"Kafka with {len(brokers)} broker{'s' if len(brokers) > 1 else ''}",
            f"librdkafka {libversion()[0]}",
            _flush(),
        )
    )


def _flush() -> str:
    """Return the time that a write of 8 kB and its flush take where PostgreSQL writes, if that is on this machine."""
    with connection.cursor() as cursor:
        # NULL without the right to read the setting.
        cursor.execute("SELECT (SELECT setting FROM pg_settings WHERE name = 'data_directory')")
        (data,) = cursor.fetchone() or (None,)
    is_here = data is not None and os.access(data, os.W_OK | os.X_OK)
    disk = "PostgreSQL's disk" if is_here else "the disk of temporary files"
    # The file has no name, so PostgreSQL does not see it.
    with tempfile.TemporaryFile(dir=data if is_here else None, buffering=0) as file:
        seconds = median(_timed_flush(file.fileno()) for _ in range(_FLUSHES))
    return f"a flush of 8 kB to {disk} {1000 * seconds:.1f} ms"


def _timed_flush(descriptor: int) -> float:
    started = time.perf_counter()
    os.write(descriptor, _BLOCK)
    os.fdatasync(descriptor)
    return time.perf_counter() - started


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
