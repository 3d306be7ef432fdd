"""A brake on guessing passwords. Throttles never guard stock: that is the admission's work."""

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

from couponsite.client_address import client_network

logger = structlog.get_logger(__name__)

# How long an address stays known after a login, and how many of an account: bounds of what Redis keeps.
KNOWN_FOR = timedelta(days=30)
MOST_KNOWN = 16


class TooManyLogins(Throttled):
    """Past the brake; ``wait`` is in seconds."""

    def __init__(self, wait: int) -> None:
        super().__init__(wait=wait)
        self.wait = wait


def check_password(request: HttpRequest, username: str, password: str) -> User | None:
    """The active user with this name and password, else None.

    Every call counts against the client's address and against the account; ``username`` may be in any normal form of
    Unicode. Raises TooManyLogins past ``AUTH_TOKEN_THROTTLE`` of the address. Past that of the
    account only the right password passes, and only from an address where the account has logged in lately: guesses
    from elsewhere do not lock the user out, and learn nothing about the password.

    Redis counts for all processes together; while it is away each process counts for itself and no address is known.
    """
    username = get_user_model().normalize_username(username)
    limit, period = settings.AUTH_TOKEN_THROTTLE
    window, elapsed = divmod(int(time.time()), period)
    address, account = _digest(client_network(request)), _digest(username)
    # Both count even when the first is over: what is refused to an address still counts against the account.
    by_address, by_account, shared = _count(
        f"login:address:{address}:{window}", f"login:account:{account}:{window}", period
    )
    over = by_account > limit
    if by_address > limit or (over and not (shared and _is_known(account, address))):
        raise TooManyLogins(period - elapsed)
    user = authenticate(request, username=username, password=password)
    if user is None and over:
        raise TooManyLogins(period - elapsed)
    if user is not None and shared:
        _remember(account, address)
    return user


def _digest(subject: str) -> str:
    return hashlib.sha256(subject.encode("utf-8", "replace")).hexdigest()[:32]


def _count(by_address: str, by_account: str, period: int) -> tuple[int, int, bool]:
    """The new values of both counters, and whether all processes share them."""
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
        # The key went away in between: at the end of its window, or with a flush.
        return 1


def _known_key(account: str) -> str:
    return caches["default"].make_key(f"login:known:{account}")


def _is_known(account: str, address: str) -> bool:
    """Whether the account has logged in from there within ``KNOWN_FOR``; False where Redis has lost it."""
    try:
        seen_at: float | None = get_redis_connection("default").zscore(_known_key(account), address)
    except (RedisError, ConnectionInterrupted) as error:
        logger.warning("known addresses of logins not read", error=type(error).__name__)
        return False
    return seen_at is not None and seen_at > time.time() - KNOWN_FOR.total_seconds()


def _remember(account: str, address: str) -> None:
    """Makes the address known: the ``MOST_KNOWN`` latest of an account are kept."""
    key, now = _known_key(account), time.time()
    try:
        pipeline = get_redis_connection("default").pipeline()
        pipeline.zadd(key, {address: now})
        pipeline.zremrangebyrank(key, 0, -MOST_KNOWN - 1)
        pipeline.expire(key, KNOWN_FOR)
        pipeline.execute()
    except (RedisError, ConnectionInterrupted) as error:
        logger.warning("known addresses of logins not written", error=type(error).__name__)
