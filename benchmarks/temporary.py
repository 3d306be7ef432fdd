"""Databases and topics of the run's own, gone when it ends, and its groups in Kafka and answers in Redis with them."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

from confluent_kafka.admin import AdminClient
from django.conf import settings
from django.core.management import call_command
from django.db import connection
from django_redis import get_redis_connection

from coupons.admission.gate import redis_keys
from coupons.models import Coupon, IssueRequest
from kafka_bridge.client import delete_topics, ensure_topics

_KEYS_AT_ONCE = 5000


@contextmanager
def scratch_database() -> Iterator[str]:
    """A migrated database beside the configured one, which Django uses from now on; the value is its name."""
    with empty_database() as name:
        settings.DATABASES["default"]["NAME"] = name
        migrate()
        try:
            yield name
        finally:
            forget()


@contextmanager
def empty_database() -> Iterator[str]:
    """A database beside the configured one; the value is its name."""
    name = f"{settings.DATABASES['default']['NAME'][:40]}_bench_{secrets.token_hex(4)}"
    _on_server("CREATE DATABASE {}", name)
    try:
        yield name
    finally:
        connection.close()
        _on_server("DROP DATABASE {} WITH (FORCE)", name)


def migrate() -> None:
    """Make the tables where Django's connection leads to."""
    call_command("migrate", verbosity=0)
    # In Redis a gate goes by the coupon's id alone, and another database may have its own there.
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE coupons_coupon ALTER id RESTART WITH {10**12 + secrets.randbelow(10**12)}")


def _on_server(statement: str, name: str) -> None:
    """Runs a statement about a database on another one."""
    with connection._nodb_cursor() as cursor:
        cursor.execute(statement.format(connection.ops.quote_name(name)))


@contextmanager
def scratch_topics() -> Iterator[None]:
    """The topics of all events, under a prefix that nobody else has."""
    before = settings.KAFKA_TOPIC_PREFIX
    settings.KAFKA_TOPIC_PREFIX = f"bench-{secrets.token_hex(4)}-"
    created: list[str] = []
    try:
        created, _ = ensure_topics(settings.KAFKA_ROUTES)
        yield
    finally:
        _delete_groups(settings.KAFKA_TOPIC_PREFIX)
        delete_topics(created)
        settings.KAFKA_TOPIC_PREFIX = before


def _delete_groups(prefix: str) -> None:
    admin = AdminClient({"bootstrap.servers": settings.KAFKA_BOOTSTRAP_SERVERS})
    groups = [group.group_id for group in admin.list_consumer_groups().result().valid]
    ours = [group for group in groups if group.startswith(prefix)]
    for future in (admin.delete_consumer_groups(ours) if ours else {}).values():
        future.result()


def settle_outbox() -> None:
    """Make what is in the outbox look as if it had been published for a while."""
    with connection.cursor() as cursor:
        cursor.execute("UPDATE kafka_bridge_outboxmessage SET published_at = now() WHERE published_at IS NULL")
        cursor.execute("VACUUM (ANALYZE) kafka_bridge_outboxmessage")


def forget() -> None:
    """Take the answers to this database's requests, and the gates of its coupons, out of Redis."""
    redis = get_redis_connection("default")
    request_ids = IssueRequest.objects.exclude(requested_at=None).values_list("request_id", flat=True)
    keys = [f"status:{request_id}" for request_id in request_ids.iterator(_KEYS_AT_ONCE)]
    keys += chain.from_iterable(map(redis_keys.keys, Coupon.objects.values_list("id", flat=True)))
    for start in range(0, len(keys), _KEYS_AT_ONCE):
        redis.unlink(*keys[start : start + _KEYS_AT_ONCE])
