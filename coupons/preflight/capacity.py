"""The checks of settings and services against the expected requests: what would refuse, time out or run full."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.conf import settings
from django.db import connection

from common.redis_client import redis_connection
from kafka_bridge.operating.preflight import CheckLine, Verdict, judged
from kafka_bridge.operating.preflight_checks import role_lines
from kafka_bridge.operating.processes import ProcessState, running_processes

# What a request leaves in the tables and indexes: outbox rows of request and result, terminal row, coupon, inbox row.
# Measured by a test.
BYTES_PER_REQUEST = 2_500
# The status, the user's recent requests and the entry of the gate.
REDIS_BYTES_PER_REQUEST = 1_000
# A coupon is decided by one issuer at a time, in batches: so many a second with full ones, on modest hardware.
DECISIONS_PER_SECOND = 2_000
_BATCHES_PER_SECOND = 20
# How many connections a process of a role opens at most, as docs/operations.md says; a consumer one per group more.
_OTHER = 4
_OF_ROLE = {"web": 11, "relay": 3, "housekeeper": 7, "reconciler": 7}


def settings_lines(requests: int) -> Iterator[CheckLine]:
    """Judge the settings: which of them would refuse or time out some of ``requests`` that arrive at once."""
    depth = settings.OUTBOX_MAX_DEPTH
    yield judged(
        "OUTBOX_MAX_DEPTH",
        requests <= depth,
        f"{depth} rows may wait, {requests} requests are expected",
        f"set OUTBOX_MAX_DEPTH to {requests} or more: requests past it are refused",
    )
    rate = min(DECISIONS_PER_SECOND, settings.CONSUMER_BATCH_SIZE * _BATCHES_PER_SECOND)
    needed = -(-requests // rate)
    for name in ("REQUEST_DEADLINE_SECONDS", "OUTBOX_MAX_AGE_SECONDS"):
        limit = getattr(settings, name)
        yield judged(
            name,
            needed <= limit,
            f"{limit} s, and {requests} requests take about {needed} s at {rate} a second"
            f" (CONSUMER_BATCH_SIZE {settings.CONSUMER_BATCH_SIZE})",
            f"set {name} to {needed} or more, or CONSUMER_BATCH_SIZE to 100 or more",
        )
    yield judged("DEBUG", not settings.DEBUG, "on" if settings.DEBUG else "off", "set DEBUG=False and restart")
    limit, period = settings.AUTH_TOKEN_THROTTLE
    found = f"{limit} sign-ins in {period} s per address and account"
    if settings.TRUSTED_PROXY_COUNT:
        yield CheckLine("AUTH_TOKEN_THROTTLE", Verdict.GO, found)
    else:
        remedy = "behind a proxy set TRUSTED_PROXY_COUNT: all users share its address otherwise"
        yield CheckLine("AUTH_TOKEN_THROTTLE", Verdict.WARN, f"{found}; no proxy is trusted", remedy)


def redis_lines(requests: int) -> Iterator[CheckLine]:
    """Judge the role, the policy and the free memory of Redis. Raises RedisError."""
    info: dict[str, Any] = redis_connection().info()
    role, policy = info.get("role"), info.get("maxmemory_policy")
    yield judged("Redis role", role == "master", f"{role}", "let REDIS_URL lead to the primary")
    yield judged(
        "Redis policy",
        policy == "noeviction",
        f"maxmemory-policy is {policy}",
        "redis-cli CONFIG SET maxmemory-policy noeviction: an evicted gate admits requests again",
    )
    limit, used = int(info.get("maxmemory", 0)), int(info.get("used_memory", 0))
    needed = requests * REDIS_BYTES_PER_REQUEST
    if not limit:
        remedy = "redis-cli CONFIG SET maxmemory: without it Redis takes the memory of its host"
        yield CheckLine("Redis memory", Verdict.NO_GO, f"{_size(used)} used, no maxmemory", remedy)
    else:
        found = f"{_size(limit - used)} of {_size(limit)} free, {requests} requests need {_size(needed)}"
        remedy = f"redis-cli CONFIG SET maxmemory {used + needed} or more"
        yield judged("Redis memory", limit - used >= needed, found, remedy)


_CONNECTIONS = """
    SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
           - coalesce(current_setting('reserved_connections', true), '0')::int
           - (SELECT count(*) FROM pg_stat_activity
              WHERE backend_type = 'client backend' AND datname IS DISTINCT FROM current_database())
"""


def connection_lines() -> Iterator[CheckLine]:
    """Judge whether PostgreSQL has a connection for every one that the running processes may open."""
    with connection.cursor() as cursor:
        cursor.execute(_CONNECTIONS)
        (available,) = cursor.fetchone() or (0,)
    running = [process for process in running_processes() if process.state is not ProcessState.SILENT]
    of_role = {**_OF_ROLE, "site": settings.WEB_THREADS + _OTHER}
    # The sessions of an operator's shell come on top.
    needed = _OTHER + sum(of_role.get(process.role, _OTHER + len(process.groups)) for process in running)
    yield judged(
        "connections",
        needed <= available,
        f"{len(running)} processes open at most {needed}, PostgreSQL has {available} for them",
        "raise max_connections, or lower WEB_THREADS or the number of processes",
    )


def disk_lines(requests: int) -> Iterator[CheckLine]:
    """Judge whether the rows of ``requests`` fit on the disk of PostgreSQL, if POSTGRES_DISK_BYTES says its size."""
    needed = requests * BYTES_PER_REQUEST
    size = settings.POSTGRES_DISK_BYTES
    if not size:
        found = f"{requests} requests need {_size(needed)}; POSTGRES_DISK_BYTES is not set"
        yield CheckLine("disk", Verdict.UNKNOWN, found, "set POSTGRES_DISK_BYTES to the size of PostgreSQL's disk")
        return
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_database_size(current_database())")
        (used,) = cursor.fetchone() or (0,)
    yield judged(
        "disk",
        used + needed <= size,
        f"{_size(used)} used of {_size(size)}, {requests} requests need {_size(needed)}",
        "enlarge the disk, or shorten OUTBOX_RETENTION_HOURS and run housekeep",
    )


def web_lines() -> Iterator[CheckLine]:
    """Judge whether a web process and a site run."""
    yield from role_lines(running_processes(), {"web": "see web in the Procfile", "site": "see site in the Procfile"})


def _size(number: int) -> str:
    return f"{number / 1_000_000:,.0f} MB"
