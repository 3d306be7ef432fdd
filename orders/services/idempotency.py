"""Idempotency keys of orders: rows written in the transaction of the call's effect."""

from __future__ import annotations

import hashlib
from typing import TypeVar

import msgspec
from django.db import connection
from django.db.models import QuerySet

from common.api.errors import IdempotencyKeyReused

from ..errors import InProgress
from ..models import IdempotencyKey

Response = TypeVar("Response", bound=msgspec.Struct)

_TRY_LOCK = "SELECT pg_try_advisory_xact_lock(hashtextextended(%s, 0))"


def fingerprint(parameters: bytes) -> bytes:
    """Hash the parameters of a call: a repeat under the same key must have the same fingerprint."""
    return hashlib.sha256(parameters).digest()


def claim_key(
    response_type: type[Response], *, user_id: int, operation: str, key: str, parameters: bytes
) -> Response | None:
    """Claim a key for a call, within the call's transaction; returns the stored response of an earlier call.

    None: execute the call, then ``store_response``. A rolled back transaction leaves no claim. Raises
    IdempotencyKeyReused for a key used with other ``parameters``, InProgress while a call with this key runs.
    """
    # A concurrent INSERT of the same key would wait for the first commit; the lock refuses it at once.
    with connection.cursor() as cursor:
        cursor.execute(_TRY_LOCK, [f"{user_id}\n{operation}\n{key}"])
        (locked,) = cursor.fetchone() or (False,)
    if not locked:
        raise InProgress("A call with this Idempotency-Key is in progress: try again in a moment.", retry_after=1)
    digest = fingerprint(parameters)
    row = IdempotencyKey.objects.filter(user_id=user_id, operation=operation, key=key).first()
    if row is None:
        IdempotencyKey.objects.create(user_id=user_id, operation=operation, key=key, fingerprint=digest)
        return None
    if bytes(row.fingerprint) != digest:
        raise IdempotencyKeyReused("The Idempotency-Key was used for a different call: use a new key for this call.")
    return None if row.response is None else msgspec.json.decode(row.response, type=response_type)


def store_response(*, user_id: int, operation: str, parameters: bytes, response: msgspec.Struct) -> None:
    """Store ``response`` for all keys of this call, of this user, that have no response yet."""
    _without_response(user_id, operation, parameters).update(response=msgspec.json.encode(response))


def discard_keys(*, user_id: int, operation: str, parameters: bytes) -> None:
    """Delete the keys of a refused call, so that they can be used again, also for another call."""
    _without_response(user_id, operation, parameters).delete()


def _without_response(user_id: int, operation: str, parameters: bytes) -> QuerySet[IdempotencyKey]:
    return IdempotencyKey.objects.filter(
        user_id=user_id, operation=operation, fingerprint=fingerprint(parameters), response=None
    )
