"""Temporary databases and topics, deleted at the end of the run with its Kafka consumer groups and Redis keys."""

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

from coupons.admission.gate.store import GateStore
from coupons.models import Coupon, IssueRequest
from kafka_bridge.client import delete_topics, ensure_topics
from kafka_bridge.models import SHARDS

_KEYS_AT_ONCE = 5000

_PUBLISH_ALL = """
    INSERT INTO kafka_bridge_relaylease (shard, position, sent_through)
    SELECT shard, last_id, last_id
    FROM generate_series(0, %s - 1) AS shard,
         (SELECT coalesce(max(id), 0) AS last_id FROM kafka_bridge_outboxmessage) AS outbox
    ON CONFLICT (shard) DO UPDATE SET position = EXCLUDED.position, sent_through = EXCLUDED.sent_through, gaps = '{}'
"""


@contextmanager
def temporary_database() -> Iterator[str]:
    """Create and migrate a database on the configured server, make Django use it, and yield its name."""
    with empty_database() as name:
        settings.DATABASES["default"]["NAME"] = name
        migrate()
        try:
            yield name
        finally:
            delete_redis_keys()


@contextmanager
def empty_database() -> Iterator[str]:
    """Create an empty database on the configured server and yield its name."""
    name = f"{settings.DATABASES['default']['NAME'][:40]}_bench_{secrets.token_hex(4)}"
    _on_server("CREATE DATABASE {}", name)
    try:
        yield name
    finally:
        connection.close()
        _on_server("DROP DATABASE {} WITH (FORCE)", name)


def migrate() -> None:
    """Migrate the database of Django's connection."""
    call_command("migrate", verbosity=0)
    # Gate keys in Redis contain only the coupon's id, so ids must differ from those of other databases on this Redis.
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE coupons_coupon ALTER id RESTART WITH {10**12 + secrets.randbelow(10**12)}")


def _on_server(statement: str, name: str) -> None:
    """Run a statement about database ``name`` while connected to another one."""
    with connection._nodb_cursor() as cursor:
        cursor.execute(statement.format(connection.ops.quote_name(name)))


@contextmanager
def temporary_topics() -> Iterator[None]:
    """Create the topics of all events under a unique prefix."""
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
    own_groups = [group for group in groups if group.startswith(prefix)]
    for future in (admin.delete_consumer_groups(own_groups) if own_groups else {}).values():
        future.result()


def mark_outbox_published() -> None:
    """Move the positions to the last outbox row, while no relay runs, and vacuum the table as autovacuum would."""
    with connection.cursor() as cursor:
        cursor.execute(_PUBLISH_ALL, [SHARDS])
        cursor.execute("VACUUM (ANALYZE) kafka_bridge_outboxmessage")


def require_empty_redis() -> None:
    """Raise AssertionError if Redis has keys: the reconciler removes gates and statuses that its database lacks."""
    if get_redis_connection("default").dbsize():
        raise AssertionError("the Redis is in use: give REDIS_URL an index of its own, such as .../9")


def delete_redis_keys() -> None:
    """Delete from Redis the cached statuses of this database's requests and the gates of its coupons."""
    redis = get_redis_connection("default")
    request_ids = IssueRequest.objects.exclude(requested_at=None).values_list("request_id", flat=True)
    keys = [f"status:{request_id}" for request_id in request_ids.iterator(_KEYS_AT_ONCE)]
    keys += chain.from_iterable(GateStore(coupon_id).keys for coupon_id in Coupon.objects.values_list("id", flat=True))
    for start in range(0, len(keys), _KEYS_AT_ONCE):
        redis.unlink(*keys[start : start + _KEYS_AT_ONCE])
