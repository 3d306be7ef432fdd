"""Who keeps whom from the row of a coupon, and the state of the gates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django_redis import get_redis_connection
from pytest_django import Settings

from coupons.admission.gate.overview import gate_overviews
from coupons.admission.gate.store import GateStore
from coupons.issuance import accept
from coupons.models import Coupon
from couponsite.ops.sessions import Session, prepared_transactions, sessions
from tests.admin.pages import html_of
from tests.support.factories import CouponFactory
from tests.support.ranking import redis_away
from tests.support.threads import in_another_session, lock, wait_until_blocked

LOCK_ROW = "SELECT FROM coupons_coupon WHERE id = %s FOR UPDATE"


def take(coupon: Coupon) -> None:
    with connection.cursor() as cursor:
        cursor.execute(LOCK_ROW, [coupon.pk])


def of_others(role: str) -> list[Session]:
    return [session for session in sessions() if session.role == role]


@pytest.mark.django_db(transaction=True)
def test_a_session_that_holds_a_row_and_those_that_wait_for_it_are_named() -> None:
    coupon, other = CouponFactory.create_batch(2)
    with lock(LOCK_ROW, coupon.pk), lock(LOCK_ROW, other.pk):
        waiting = [in_another_session(lambda: take(coupon)) for _ in range(2)]
        wait_until_blocked(2)
        (holder,) = of_others("blocks") if len(of_others("blocks")) == 1 else [
            session for session in of_others("blocks") if not session.blocked_by
        ]  # fmt: skip
        waits = [session for session in sessions() if session.blocked_by]
        assert len(waits) == 2
        assert {session.coupon_type for session in waits} == {coupon.coupon_type}
        assert holder.coupon_type == coupon.coupon_type
        assert holder.state == "idle in transaction"
        assert holder.remedy == f"SELECT pg_terminate_backend({holder.pid});"
        assert holder.age_seconds is not None
        assert all(session.remedy == "" for session in waits)
        assert any(holder.pid in session.blocked_by for session in waits)
        # The other row is held and nothing waits for it: nothing to do as long as it is young.
        (harmless,) = of_others("holds")
        assert (harmless.coupon_type, harmless.remedy) == (None, "")
    for work in waiting:
        work.result(10)
    assert not [session for session in sessions() if session.blocked_by]


@pytest.mark.django_db(transaction=True)
def test_the_remedy_followed_to_the_letter_frees_the_row() -> None:
    coupon = CouponFactory.create()
    with lock(LOCK_ROW, coupon.pk):
        waiting = in_another_session(lambda: take(coupon))
        wait_until_blocked(beside=waiting)
        (blocks,) = of_others("blocks")
        with connection.cursor() as cursor:
            cursor.execute(blocks.remedy)
        # The holder has not ended its transaction by itself.
        waiting.result(10)


@pytest.mark.django_db(transaction=True)
def test_a_prepared_transaction_is_named_with_its_remedy() -> None:
    coupon = CouponFactory.create()
    with connection.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute(LOCK_ROW, [coupon.pk])
        cursor.execute("PREPARE TRANSACTION 'it''s left'")
    waiting = in_another_session(lambda: take(coupon))
    try:
        wait_until_blocked(beside=waiting)
        (prepared,) = prepared_transactions()
        assert prepared.gid == "it's left"
        (waits,) = of_others("waits")
        assert waits.blocked_by == [0]
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ROLLBACK PREPARED 'it''s left'")
    assert prepared.remedy == "ROLLBACK PREPARED 'it''s left';"
    waiting.result(10)
    assert prepared_transactions() == []


@pytest.mark.django_db(transaction=True)
def test_the_page_says_who_blocks_whom(viewer: Client) -> None:
    coupon = CouponFactory.create(coupon_type="SUMMER")
    with lock(LOCK_ROW, coupon.pk):
        waiting = in_another_session(lambda: take(coupon))
        wait_until_blocked(beside=waiting)
        page = html_of(viewer.get("/ops/blocks"))
    waiting.result(10)
    assert "1 session waits for a lock." in page
    assert ">blocks<" in page
    assert ">waits<" in page
    assert "SUMMER" in page
    assert "pg_terminate_backend(" in page
    assert "FOR UPDATE" in page


def test_a_service_at_rest_has_no_session_to_show(viewer: Client) -> None:
    page = html_of(viewer.get("/ops/blocks"))
    assert "No session waits for a lock." in page


@pytest.fixture
def loaded_gate(gate_coupon: Coupon, redis_flushed: None) -> GateStore:
    """The gate of SUMMER, loaded by one request."""
    accept.request_accept(id_or_type=gate_coupon.pk, user_id=7, caller_id=7)
    return GateStore(gate_coupon.pk)


def test_a_gate_is_loaded_partial_or_missing(loaded_gate: GateStore) -> None:
    (loaded,) = gate_overviews([loaded_gate.coupon_id])
    assert (loaded.state, loaded.held, loaded.pending, loaded.revoked) == ("loaded", 1, 1, 0)
    assert loaded.memory_bytes
    redis = get_redis_connection("default")
    redis.delete(loaded_gate.keys.pending)
    (partial,) = gate_overviews([loaded_gate.coupon_id])
    assert (partial.state, partial.held, partial.pending) == ("partial", 1, None)
    redis.flushdb()
    (missing,) = gate_overviews([loaded_gate.coupon_id])
    assert missing[1:] == ("missing", None, None, None, None)
    assert gate_overviews([]) == []


def test_a_key_of_another_kind_spoils_its_own_number_only(loaded_gate: GateStore) -> None:
    redis = get_redis_connection("default")
    redis.set(loaded_gate.keys.revoked, "foreign")
    (found,) = gate_overviews([loaded_gate.coupon_id])
    assert (found.state, found.held, found.pending, found.revoked) == ("partial", 1, 1, None)


def test_the_page_shows_redis_and_its_gates(viewer: Client, loaded_gate: GateStore) -> None:
    page = html_of(viewer.get("/ops/blocks"))
    assert "SUMMER" in page
    assert ">loaded<" in page
    assert "noeviction" in page


def test_without_redis_the_page_says_what_that_means(
    viewer: Client, make_coupon: Callable[..., Coupon], settings: Settings
) -> None:
    make_coupon(admission="gate")
    with redis_away(settings):
        page: Any = html_of(viewer.get("/ops/blocks"))
    assert "Redis does not answer" in page
    assert "Sessions of PostgreSQL" in page
