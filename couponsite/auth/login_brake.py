"""Throttling of password guesses. Throttles never protect the stock: admissions do that."""

from __future__ import annotations

import hashlib
import time
from datetime import timedelta

import structlog
from django.conf import settings
from django.contrib.auth import authenticate, get_user_model
from django.contrib.auth.models import User
from django.core.cache import caches
from django.http import HttpRequest
from django_redis import get_redis_connection
from django_redis.exceptions import ConnectionInterrupted
from redis.exceptions import RedisError
from rest_framework.exceptions import Throttled

from couponsite.auth.client_network import client_network

logger = structlog.get_logger(__name__)

# How long an address stays known after a login, and how many are kept per account: limits on memory in Redis.
KNOWN_FOR = timedelta(days=30)
MOST_KNOWN = 16


class TooManyLogins(Throttled):
    """The login is throttled; ``wait`` is in seconds."""

    wait: int


def check_password(request: HttpRequest, username: str, password: str) -> User | None:
    """Return the active user with this name and password, else None.

    Every call counts against the client's address and against the account; ``username`` may be in any normal form of
    Unicode. Raises TooManyLogins when the address exceeds ``AUTH_TOKEN_THROTTLE``. When the account exceeds it, only
    the right password passes, and only from an address with a recent login of the account: guesses from other
    addresses do not lock the user out, and learn nothing about the password.

    Redis counts for all processes together; without Redis each process counts alone and no address is known.
    """
    username = get_user_model().normalize_username(username)
    limit, period = settings.AUTH_TOKEN_THROTTLE
    window, elapsed = divmod(int(time.time()), period)
    address, account = _digest(client_network(request)), _digest(username)
    # Increment both, even if the first exceeds its limit: refused guesses count against the account too.
    by_address, by_account, shared = _count(
        f"login:address:{address}:{window}", f"login:account:{account}:{window}", period
    )
    over = by_account > limit
    if by_address > limit or (over and not (shared and _is_known(account, address))):
        raise TooManyLogins(wait=period - elapsed)
    user = authenticate(request, username=username, password=password)
    if user is None and over:
        raise TooManyLogins(wait=period - elapsed)
    if user is not None and shared:
        _remember(account, address)
    return user


def _digest(subject: str) -> str:
    return hashlib.sha256(subject.encode("utf-8", "replace")).hexdigest()[:32]


def _count(by_address: str, by_account: str, period: int) -> tuple[int, int, bool]:
    """Increment both counters; returns their values, and whether all processes share them."""
    try:
        return _increment("default", by_address, period), _increment("default", by_account, period), True
    except (RedisError, ConnectionInterrupted) as error:
        logger.warning("logins are counted per process", error=type(error).__name__)
        return _increment("process", by_address, period), _increment("process", by_account, period), False


def _increment(alias: str, key: str, period: int) -> int:
    cache = caches[alias]
    cache.add(key, 0, timeout=period)
    try:
        return int(cache.incr(key))
    except ValueError:
        # The key disappeared in between: its window ended, or Redis was flushed.
        return 1


def _known_key(account: str) -> str:
    return caches["default"].make_key(f"login:known:{account}")


def _is_known(account: str, address: str) -> bool:
    """Whether the account logged in from the address within ``KNOWN_FOR``; False without Redis."""
    try:
        seen_at: float | None = get_redis_connection("default").zscore(_known_key(account), address)
    except (RedisError, ConnectionInterrupted) as error:
        logger.warning("known addresses of logins not read", error=type(error).__name__)
        return False
    return seen_at is not None and seen_at > time.time() - KNOWN_FOR.total_seconds()


def _remember(account: str, address: str) -> None:
    """Store the address as known; an account keeps its ``MOST_KNOWN`` latest addresses."""
    key, now = _known_key(account), time.time()
    try:
        pipeline = get_redis_connection("default").pipeline()
        pipeline.zadd(key, {address: now})
        pipeline.zremrangebyrank(key, 0, -MOST_KNOWN - 1)
        pipeline.expire(key, KNOWN_FOR)
        pipeline.execute()
    except (RedisError, ConnectionInterrupted) as error:
        logger.warning("known addresses of logins not written", error=type(error).__name__)
