"""A brake on guessing passwords. Throttles never guard stock: that is the admission's work."""

from __future__ import annotations

import hashlib
import time

import structlog
from django.conf import settings
from django.core.cache import caches
from django_redis.exceptions import ConnectionInterrupted
from redis.exceptions import RedisError
from rest_framework.exceptions import Throttled
from rest_framework.request import Request
from rest_framework.throttling import BaseThrottle

logger = structlog.get_logger(__name__)


def throttle_login(request: Request, username: str) -> None:
    """Counts a login against the client's address and against the account.

    Raises Throttled past ``AUTH_TOKEN_THROTTLE`` of either. Redis counts for all processes together; while it
    is away each process counts for itself: logins go on, and guessing stays slow.
    """
    limit, period = settings.AUTH_TOKEN_THROTTLE
    window, elapsed = divmod(int(time.time()), period)
    address = BaseThrottle().get_ident(request)
    # Both count even when the first is over: what is refused to an address still counts against the account.
    counts = [
        _count(f"login:{kind}:{_digest(subject)}:{window}", period)
        for kind, subject in (("address", address or ""), ("account", username))
    ]
    if max(counts) > limit:
        raise Throttled(wait=period - elapsed)


def _digest(subject: str) -> str:
    return hashlib.sha256(subject.encode("utf-8", "replace")).hexdigest()[:32]


def _count(key: str, period: int) -> int:
    try:
        return _increment("default", key, period)
    except (RedisError, ConnectionInterrupted) as error:
        logger.warning("logins are counted per process", error=type(error).__name__)
        return _increment("process", key, period)


def _increment(alias: str, key: str, period: int) -> int:
    cache = caches[alias]
    cache.add(key, 0, timeout=period)
    try:
        return int(cache.incr(key))
    except ValueError:
        # The key went away in between: at the end of its window, or with a flush.
        return 1
