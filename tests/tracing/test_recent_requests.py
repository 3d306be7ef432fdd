"""The last requests of a user in Redis: five of them, in the call that caches their statuses, and bounded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from django_redis import get_redis_connection
from pytest_django import Settings
from redis import Redis
from redis.exceptions import RedisError
from uuid_utils.compat import uuid7

from common.bigint import MAX_BIGINT
from coupons.issuance.status_cache import RequestStatus, recent_requests, store, write
from devstack import wait_until

pytestmark = pytest.mark.usefixtures("redis_flushed")


def redis() -> Any:
    return get_redis_connection("default")


def lost(user_id: int | None, request_id: UUID | None = None) -> RequestStatus:
    return RequestStatus(
        request_id or uuid7(), "SUMMER", user_id, "FAILED", "SOLD_OUT", None, None, "2026-01-01T00:00:00Z"
    )


def test_the_last_five_are_known_the_latest_first() -> None:
    statuses = [lost(MAX_BIGINT) for _ in range(4)]
    store(statuses)
    store([lost(8), *(more := [lost(MAX_BIGINT) for _ in range(3)]), lost(None)])
    expected = [status.request_id for status in (statuses + more)[:1:-1]]
    assert recent_requests(MAX_BIGINT) == expected
    assert len(recent_requests(8)) == 1
    assert recent_requests(9) == []
    (key,) = redis().keys(f"recent-requests:{MAX_BIGINT}")
    assert redis().strlen(key) == 5 * 16
    assert 86_000 < redis().ttl(key) <= 86_400


def test_a_repeated_result_keeps_its_place() -> None:
    first, second = lost(7), lost(7)
    store([first, second])
    store([first])
    assert recent_requests(7) == [second.request_id, first.request_id]


def test_statuses_that_are_rebuilt_are_not_recent() -> None:
    assert write([lost(7)]) == 1
    assert recent_requests(7) == []


def test_nothing_is_written_where_the_cache_has_no_room(settings: Settings) -> None:
    settings.STATUS_CACHE_MEMORY_PERCENT = 0
    # The memory is measured once a second.
    wait_until(lambda: write([lost(7)]) == 0, 10, "statuses are cached without room")
    redis().flushdb()
    store([lost(7)])
    assert redis().keys("*") == []
    settings.STATUS_CACHE_MEMORY_PERCENT = 90
    wait_until(lambda: write([lost(7)]) == 1, 10, "statuses are not cached although there is room")


def test_it_is_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[str] = []
    execute: Callable[..., Any] = Redis.execute_command

    def counted(client: Any, *arguments: Any, **options: Any) -> Any:
        commands.append(str(arguments[0]))
        return execute(client, *arguments, **options)

    monkeypatch.setattr(Redis, "execute_command", counted)
    store([lost(user_id) for user_id in range(1, 500)])
    assert recent_requests(499)
    assert [command for command in commands if command != "INFO"] == ["EVALSHA", "GETRANGE"]


@pytest.mark.parametrize("spoil", ["list", "long", "odd"])
def test_what_others_wrote_is_replaced(spoil: str) -> None:
    key = "recent-requests:7"
    if spoil == "list":
        redis().rpush(key, "x")
        with pytest.raises(RedisError):
            recent_requests(7)
    else:
        redis().set(key, b"x" * (1_000_000 if spoil == "long" else 7))
        assert len(recent_requests(7)) <= 5
    one = lost(7)
    store([one, lost(8)])
    assert recent_requests(7)[0] == one.request_id
    assert redis().strlen(key) <= 5 * 16
    assert len(recent_requests(8)) == 1
