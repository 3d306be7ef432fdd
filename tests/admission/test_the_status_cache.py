"""The status cache: what cannot be read is a miss, what is wrong is found, and losers are forgotten first."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest
from django.test import Client

from common.processes.lifecycle import StopFlag
from common.redis_client import redis_connection
from coupons import invariants
from coupons.issuance import status_cache
from coupons.models import Coupon, IssueRequest
from coupons.reconciliation.reconciler import Reconciled, Reconciler
from coupons.selectors import terminal_status

from .conftest import accept, issue

pytestmark = pytest.mark.django_db(transaction=True)

Spoil = Callable[[str], object]


def put(entry: bytes | str) -> Spoil:
    return lambda key: redis_connection().set(key, entry)


def change(**fields: Any) -> Spoil:
    """The entry with other values; None leaves the field out."""

    def spoil(key: str) -> None:
        entry = msgspec.json.decode(redis_connection().get(key)) | fields
        kept = {name: one for name, one in entry.items() if one is not None or name not in fields}
        redis_connection().set(key, msgspec.json.encode(kept))

    return spoil


def become(kind: str) -> Spoil:
    def spoil(key: str) -> None:
        redis_connection().delete(key)
        if kind == "list":
            redis_connection().rpush(key, "x")
        else:
            redis_connection().hset(key, "status", "SUCCESS")

    return spoil


UNREADABLE = {
    "no JSON": put("x"),
    "an empty object": put("{}"),
    "another shape": change(status=None, outcome="SUCCESS"),
    "another type of a field": change(userId="7"),
    "a list": put("[]"),
    "a byte that is no UTF-8": put(b'{"requestId": "\xff"}'),
    "nesting": put("[" * 100_000),
    "a megabyte": put("x" * 1_000_000),
    "another request's": change(requestId=str(uuid4())),
    "an answer that is none": change(status="PENDING"),
    "a list of Redis": become("list"),
    "a hash of Redis": become("hash"),
}


@pytest.fixture
def request_id(make_coupon: Callable[..., Coupon]) -> UUID:
    """A request of user 1 that won."""
    accepted = accept(make_coupon(), 1)
    issue()
    return accepted.request_id


def key(request_id: UUID) -> str:
    return f"status:{request_id}"


def compare(*, repair: bool = False) -> Reconciled:
    return Reconciler(60.0, once=True, lag=lambda: 0).run(StopFlag(), repair=repair)


@pytest.mark.parametrize("spoil", UNREADABLE.values(), ids=UNREADABLE)
def test_what_cannot_be_read_is_answered_by_postgresql_found_and_repaired(
    spoil: Spoil,
    request_id: UUID,
    client: Client,
    token: Callable[..., dict[str, str]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    right = terminal_status(IssueRequest.objects.get(request_id=request_id))
    spoil(key(request_id))
    started_at = time.monotonic()
    with caplog.at_level(logging.WARNING, "coupons.issuance.status_cache"):
        for _ in range(20):
            answer = client.get(f"/api/v1/issue-requests/{request_id}", headers=token(1))
            assert (answer.status_code, answer.json()["status"]) == (200, "SUCCESS")
    # A line of the test before may be less than a second old.
    assert len(caplog.records) <= 1 + (time.monotonic() - started_at)
    assert invariants.wrong_views() == [f"request {request_id}: unreadable in Redis, SUCCESS in PostgreSQL"]
    assert compare().found.counts == {"status-unreadable": 1}
    repaired = compare(repair=True)
    assert (repaired.outage, repaired.remaining.counts) == (None, {})
    assert status_cache.load([request_id]) == {request_id: right}
    assert invariants.wrong_views() == []
    assert compare().found.counts == {}


def test_an_entry_with_fields_that_a_newer_version_added_is_read(request_id: UUID) -> None:
    change(shard=3)(key(request_id))
    right = terminal_status(IssueRequest.objects.get(request_id=request_id))
    assert status_cache.load([request_id]) == {request_id: right}
    assert compare().found.counts == {}


@pytest.mark.parametrize("field", [{"status": "FAILED", "reason": "SOLD_OUT"}, {"userId": 2}, {"userCouponId": 99}])
def test_an_entry_that_is_not_what_postgresql_says_is_written_anew(request_id: UUID, field: dict[str, Any]) -> None:
    change(**field)(key(request_id))
    assert compare(repair=True).found.counts == {"status-wrong": 1}
    right = terminal_status(IssueRequest.objects.get(request_id=request_id))
    assert status_cache.load([request_id]) == {request_id: right}


def test_entries_of_no_request_are_removed(request_id: UUID) -> None:
    gone = uuid4()
    entry = redis_connection().get(key(request_id))
    redis_connection().set(key(gone), entry.replace(str(request_id).encode(), str(gone).encode()))
    for name in ("status:x", b"status:\xff", f"status:{str(request_id).upper()}"):
        redis_connection().set(name, "x")
    redis_connection().set("something:status:x", "stays")
    assert compare(repair=True).found.counts == {"status-wrong": 1, "status-unreadable": 3}
    assert set(redis_connection().keys("*")) == {key(request_id).encode(), b"something:status:x"}


def test_one_warning_tells_of_it_and_of_how_many(request_id: UUID, caplog: pytest.LogCaptureFixture) -> None:
    put("x")(key(request_id))
    # Whatever the tests before have logged is more than a second ago then.
    time_of_next_line = time.monotonic() + 10
    with caplog.at_level(logging.WARNING, "coupons.issuance.status_cache"):
        while not caplog.records and time.monotonic() < time_of_next_line:
            status_cache.load([request_id])
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert str(request_id) in caplog.text
    assert "reconcile --repair" in caplog.text


def test_losers_are_cached_for_minutes_and_winners_for_a_day(make_coupon: Callable[..., Coupon]) -> None:
    coupon = make_coupon(total_quantity=1)
    won, lost = accept(coupon, 1).request_id, accept(coupon, 2).request_id
    issue()
    assert dict(IssueRequest.objects.values_list("request_id", "status")) == {won: "SUCCESS", lost: "FAILED"}
    assert 23 * 3600 < redis_connection().ttl(key(won)) <= 24 * 3600
    assert 0 < redis_connection().ttl(key(lost)) <= 3600
