"""The browser of an operator, requests that were accepted, and the issuer on their messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from django.contrib.auth.models import Group, User
from django.db import connection
from django.db.models.functions import Now
from django.test import Client
from uuid_utils.compat import uuid7

from common.processes.lifecycle import StopFlag
from coupons.consumer_groups import ISSUE
from coupons.issuance.accept import request_accept
from coupons.models import Coupon
from coupons.schemas import Accepted
from couponsite.admin.viewers import VIEWERS
from kafka_bridge.consuming.batch import BatchHandler
from kafka_bridge.models import SHARDS, OutboxMessage, ProcessHeartbeat, RelayLease, RelayMember
from tests.support.messages import message

_OWN_SESSION = """
    SELECT pid, backend_start, now() + interval '1 hour' FROM pg_stat_activity WHERE pid = pg_backend_pid()
"""

Decide = Callable[..., None]


@pytest.fixture
def viewer(transactional_db: None) -> Client:
    """The browser of a member of the group ``viewers``."""
    user = User.objects.create_user("victor", is_staff=True)
    user.groups.add(Group.objects.get(name=VIEWERS))
    client = Client()
    client.force_login(user)
    return client


def accept(coupon: Coupon, user_id: int, key: str | None = None) -> Accepted:
    return request_accept(id_or_type=coupon.id, user_id=user_id, caller_id=user_id, idempotency_key=key)


@pytest.fixture
def decide() -> Decide:
    """Has the issuer handle the messages of requests, as if they were read from partition 3; keywords change them."""
    handler = BatchHandler(ISSUE)

    def handle(*request_ids: UUID, value: bytes | None = None, **changes: Any) -> None:
        rows = [OutboxMessage.objects.get(event_id=request_id) for request_id in request_ids]
        received = [
            message(
                value or bytes(row.payload or b""),
                **{"partition": 3, "headers": (("ce_id", str(row.event_id).encode()),), **changes},
            )
            for row in rows
        ]
        handler.handle(received, StopFlag())

    return handle


def publish_all() -> None:
    """As if a relay had published every row."""
    RelayLease.objects.bulk_create(
        [RelayLease(shard=shard, position=10**9, sent_through=10**9) for shard in range(SHARDS)],
        update_conflicts=True,
        unique_fields=["shard"],
        update_fields=["position", "sent_through"],
    )


def have_a_relay() -> None:
    """As if a relay had every shard, in the session of this test."""
    owner = UUID(int=1)
    with connection.cursor() as cursor:
        cursor.execute(_OWN_SESSION)
        row = cursor.fetchone()
    assert row is not None
    pid, started_at, expires_at = row
    RelayMember.objects.update_or_create(
        owner=owner, defaults={"backend_pid": pid, "backend_started_at": started_at, "expires_at": expires_at}
    )
    RelayLease.objects.bulk_create(
        [RelayLease(shard=shard, owner=owner, expires_at=expires_at) for shard in range(SHARDS)],
        update_conflicts=True,
        unique_fields=["shard"],
        update_fields=["owner", "expires_at"],
    )


def have_a_process(role: str = "consumer", **fields: Any) -> ProcessHeartbeat:
    """A process that was seen just now."""
    times = {"started_at": Now(), "seen_at": Now(), "turned_at": Now()}
    return ProcessHeartbeat.objects.create(
        **{"id": uuid7(), "role": role, "host": "node-1", "pid": 42, **times, **fields}
    )


def facts(response: Any) -> dict[str, dict[str, str]]:
    """The facts of a page by step and name."""
    return {step.name: {fact.name: fact.value for fact in step.facts} for step in response.context["steps"]}


def states(response: Any) -> dict[str, str]:
    """The state of each step of a page."""
    return {step.name: step.state for step in response.context["steps"]}
