"""Idempotency keys of orders: a row in the transaction of the call's effect."""

from __future__ import annotations

import hashlib
from datetime import timedelta

from django.db import connection
from django.db.models import QuerySet
from django.db.models.functions import Now

from common.api.errors import IdempotencyKeyReused
from common.processes.lifecycle import StopFlag

from ..errors import InProgress
from ..models import IdempotencyKey

# Longer than the day that clients may count on.
KEPT = timedelta(days=2)

_BATCH = 1000

_TRY_LOCK = "SELECT pg_try_advisory_xact_lock(hashtextextended(%s, 0))"


def fingerprint(asked: bytes) -> bytes:
    """What tells two calls apart under one key."""
    return hashlib.sha256(asked).digest()


def claim_key(*, user_id: int, operation: str, key: str, asked: bytes) -> bytes | None:
    """Claim a key for the call that is about to be made, within its transaction; returns the answer it had already.

    None: go on, and ``store_response`` when the answer is known. A transaction that is rolled back leaves no claim.
    Raises IdempotencyKeyReused for a key that was given with another call, InProgress while the same call is under way.
    """
    # A second INSERT of the key would wait for the first one's commit: who comes second is told instead.
    with connection.cursor() as cursor:
        cursor.execute(_TRY_LOCK, [f"{user_id}\n{operation}\n{key}"])
        (alone,) = cursor.fetchone() or (False,)
    if not alone:
        raise InProgress("A call with this Idempotency-Key is under way: ask again in a moment.", retry_after=1)
    mark = fingerprint(asked)
    row = IdempotencyKey.objects.filter(user_id=user_id, operation=operation, key=key).first()
    if row is None:
        IdempotencyKey.objects.create(user_id=user_id, operation=operation, key=key, fingerprint=mark)
        return None
    if bytes(row.fingerprint) != mark:
        raise IdempotencyKeyReused("The Idempotency-Key belongs to another call: make a new one for this.")
    return None if row.response is None else bytes(row.response)


def store_response(*, user_id: int, operation: str, asked: bytes, response: bytes) -> None:
    """Keep ``response`` for every key under which this user asked for this and has no answer yet."""
    _unanswered(user_id, operation, asked).update(response=response)


def discard_keys(*, user_id: int, operation: str, asked: bytes) -> None:
    """The call was refused: its keys may try again, also with another call."""
    _unanswered(user_id, operation, asked).delete()


def keys_prune(stop: StopFlag) -> int:
    """Forget the keys that are past their time, in batches; returns how many."""
    forgotten = 0
    while not stop:
        old = IdempotencyKey.objects.filter(created_at__lt=Now() - KEPT).order_by("created_at")[:_BATCH]
        batch = IdempotencyKey.objects.filter(id__in=old.values("id")).delete()[0]
        if not batch:
            break
        forgotten += batch
    return forgotten


def _unanswered(user_id: int, operation: str, asked: bytes) -> QuerySet[IdempotencyKey]:
    return IdempotencyKey.objects.filter(
        user_id=user_id, operation=operation, fingerprint=fingerprint(asked), response=None
    )
