"""An accept API and an issuer in one process: what was accepted is decided when a test says so."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any
from uuid import UUID

import pytest
from django.db import connection, transaction
from django_redis import get_redis_connection
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from common import redis_scripts
from common.api.errors import DomainError
from common.group_commit import GroupCommit
from common.processes.lifecycle import StopFlag
from coupons import issue_worker
from coupons.admission import ADMISSIONS
from coupons.admission.gate import key_scan
from coupons.admission.gate import store as gate_store
from coupons.admission.gate.redis_keys import SENTINEL
from coupons.admission.gate.store import GateStore
from coupons.consumer_groups import ISSUE
from coupons.coupon_cache import CachedCoupon, coupon_cache
from coupons.invariants import violations
from coupons.issuance import accept_group
from coupons.issuance.accept import request_accept
from coupons.messages import ISSUE_REQUESTED
from coupons.models import Coupon, IssueRequest, RolloutChange
from coupons.schemas import Accepted
from devstack.ports import free_port
from kafka_bridge.consuming.batch import BatchHandler
from kafka_bridge.models import OutboxMessage
from kafka_bridge.registry import ReceivedMessage
from tests.support.messages import message

Ask = Callable[..., str]
MakeGate = Callable[..., Coupon]


@pytest.fixture(autouse=True)
def _empty_redis(redis_flushed: None) -> None:
    pass


@pytest.fixture
def redis_away(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    away = Redis(port=free_port(), retry=Retry(NoBackoff(), 0), socket_timeout=1)
    for module in (redis_scripts, gate_store, key_scan):
        monkeypatch.setattr(module, "redis_connection", lambda: away)
    yield
    away.close()


@pytest.fixture
def every_request_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests share nothing, as if each were in a process of its own."""

    def for_coupon(lines: object, coupon: CachedCoupon) -> GroupCommit[Any, Any]:
        return GroupCommit(partial(accept_group.accept_group, ADMISSIONS[coupon.admission]))

    monkeypatch.setattr(accept_group.GroupCommitters, "for_coupon", for_coupon)


def accept(coupon: Coupon, user_id: int, key: str | None = None) -> Accepted:
    return request_accept(id_or_type=coupon.id, user_id=user_id, caller_id=user_id, idempotency_key=key)


def ask(coupon: Coupon, user_id: int, key: str | None = None) -> str:
    """What a user is told: ``accepted``, or the code of the refusal."""
    try:
        accept(coupon, user_id, key)
    except DomainError as error:
        return error.code
    return "accepted"


def at_once(calls: Iterable[Callable[[], Any]], *, threads: int = 20) -> list[Any]:
    """Makes the calls from many threads that begin together; returns what they return, in order."""
    begin = threading.Barrier(threads)

    def run(call: Callable[[], Any]) -> Any:
        try:
            return call()
        finally:
            connection.close()

    with ThreadPoolExecutor(threads, initializer=begin.wait) as pool:
        return [future.result(60) for future in [pool.submit(run, call) for call in calls]]


def crowd(coupon: Coupon, user_ids: Iterable[int]) -> Counter[str]:
    """What the users are told who ask at once."""
    return Counter(at_once([partial(ask, coupon, user_id) for user_id in user_ids]))


def messages_on_their_way() -> list[ReceivedMessage]:
    """Every accepted request that has no answer, as the issuer gets it."""
    rows = OutboxMessage.objects.filter(event_type=ISSUE_REQUESTED).order_by("id")
    ended = set(IssueRequest.objects.values_list("request_id", flat=True))
    return [message(bytes(row.payload or b"")) for row in rows if row.event_id not in ended]


def issue(batch: list[ReceivedMessage] | None = None) -> None:
    """The issuer decides what is on its way."""
    batch = messages_on_their_way() if batch is None else batch
    for start in range(0, len(batch), 100):
        BatchHandler(ISSUE).handle(batch[start : start + 100], StopFlag())


def answer(request_id: UUID) -> tuple[str, str | None]:
    return IssueRequest.objects.values_list("status", "reason").get(request_id=request_id)


def stock(coupon: Coupon) -> tuple[int, int]:
    """(reserved, issued)"""
    coupon.refresh_from_db()
    return coupon.reserved, coupon.issued


def assert_invariants() -> None:
    with transaction.atomic():
        assert [found for found in violations() if found[1]] == []


def gate_of(coupon: Coupon) -> tuple[set[int], set[int]]:
    """(users with a piece, those of them whose requests are undecided), as the gate has it."""
    redis, names = get_redis_connection("default"), GateStore(coupon.id).keys
    takers = {int(field) for field in redis.hkeys(names.holders) if field != b"sequence"}
    return takers, {int(user) for user in redis.zrange(names.pending, 0, -1) if user != SENTINEL}


@pytest.fixture
def make_gate(make_coupon: Callable[..., Coupon]) -> MakeGate:
    return partial(make_coupon, admission="gate")


@pytest.fixture
def everybody(db: None) -> None:
    set_share(100)


@pytest.fixture
def nothing_is_pushed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(issue_worker, "enqueue_again", lambda older_than_seconds, limit: 0)


@pytest.fixture
def looks_around_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(issue_worker, "_CHECK_SECONDS", 0.0)
    monkeypatch.setattr(issue_worker, "_LOST_AFTER_SECONDS", 0.0)


def set_share(percent: float | None, coupon: Coupon | None = None) -> None:
    """Give the worker so many percent of the users, of one coupon or in general; None takes the flag away."""
    flag = f"issue-worker-{coupon.coupon_type}" if coupon else "issue-worker"
    RolloutChange.objects.create(flag=flag, percent=percent)
    coupon_cache.clear()  # as it does by itself within a second
