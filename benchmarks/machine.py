"""Description of the machine: rates are comparable only on the same one."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from confluent_kafka import libversion
from confluent_kafka.admin import AdminClient
from django.conf import settings
from django.db import connection
from django_redis import get_redis_connection


def machine() -> str:
    """Return one line: processor, cores, and versions of Python, PostgreSQL, Redis or Valkey, and librdkafka."""
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
        )
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
