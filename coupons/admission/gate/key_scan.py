"""Find keys with a gate's prefix that belong to no gate, for the reconciler. Every function raises RedisError."""

from __future__ import annotations

import re
from collections.abc import Sequence

from common.redis_client import redis_connection

from .store import GateStore

# The pattern for a scan of all keys.
KEYS = "gate:*"
_GATE_KEY = re.compile(rb"gate:\{([1-9]\d{0,18})\}(:open|:revoked|:lock)?")
_STAGING_KEY = re.compile(rb"gate:\{([1-9]\d{0,18})\}(?::open|:revoked)?:loading:(.+)")


def unexpected_keys(names: Sequence[bytes], coupon_ids: set[int]) -> list[bytes]:
    """Return those of ``names`` that belong neither to a gate of these coupons nor to a loader."""
    return [name for name in names if not _is_expected(name, coupon_ids)]


def remove_keys(names: Sequence[bytes]) -> None:
    redis_connection().unlink(*names)


def _is_expected(name: bytes, coupon_ids: set[int]) -> bool:
    client = redis_connection()
    if match := _GATE_KEY.fullmatch(name):
        # A lock without expiry would keep the gate from being loaded for ever.
        return int(match[1]) in coupon_ids and (match[2] != b":lock" or client.ttl(name) != -1)
    if match := _STAGING_KEY.fullmatch(name):
        # Staging keys of a loader that is gone expire. Those without expiry are expected only while it holds the lock.
        return client.ttl(name) != -1 or bool(client.get(GateStore(int(match[1])).lock_key) == match[2])
    return False
