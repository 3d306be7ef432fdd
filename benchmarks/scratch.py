"""A database and topics of the run's own, gone when it ends, and its answers in Redis with them."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from django.conf import settings
from django.core.management import call_command
from django.db import connection
from django_redis import get_redis_connection

from coupons.models import IssueRequest
from kafka_bridge.client import delete_topics, ensure_topics

_KEYS_AT_ONCE = 5000


@contextmanager
def scratch_database() -> Iterator[str]:
    """A migrated database beside the configured one, which Django uses from now on; the value is its name."""
    configured = settings.DATABASES["default"]
    name = f"{configured['NAME'][:40]}_bench_{secrets.token_hex(4)}"
    _on_server("CREATE DATABASE {}", name)
    try:
        configured["NAME"] = name
        call_command("migrate", verbosity=0)
        yield name
    finally:
        connection.close()
        _on_server("DROP DATABASE {} WITH (FORCE)", name)


def _on_server(statement: str, name: str) -> None:
    """Runs a statement about a database on another one."""
    with connection._nodb_cursor() as cursor:
        cursor.execute(statement.format(connection.ops.quote_name(name)))


@contextmanager
def scratch_topics(*event_types: str) -> Iterator[None]:
    """The topics of these events, under a prefix that nobody else has."""
    before = settings.KAFKA_TOPIC_PREFIX
    settings.KAFKA_TOPIC_PREFIX = f"bench-{secrets.token_hex(4)}-"
    created: list[str] = []
    try:
        created, _ = ensure_topics({name: settings.KAFKA_ROUTES[name] for name in event_types})
        yield
    finally:
        settings.KAFKA_TOPIC_PREFIX = before
        if created:
            delete_topics(created)


def forget_answers() -> None:
    """Takes the answers to this run's requests out of Redis."""
    redis = get_redis_connection("default")
    request_ids = IssueRequest.objects.values_list("request_id", flat=True).iterator(_KEYS_AT_ONCE)
    keys = [f"status:{request_id}" for request_id in request_ids]
    for start in range(0, len(keys), _KEYS_AT_ONCE):
        redis.unlink(*keys[start : start + _KEYS_AT_ONCE])
