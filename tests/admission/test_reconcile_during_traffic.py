"""The reconciler beside a crowd: it touches no request that is on its way."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from django.db import connection

from coupons.admission.gate.store import GateStore
from coupons.issuance import fail_orphaned
from coupons.models import Coupon, IssueRequest, UserCoupon
from coupons.reconciliation import gate as gate_check
from devstack import wait_until
from kafka_bridge.models import OutboxMessage

from .comparisons import (
    Running,
    crowd_of_three_lines,
    has_found_leaks,
    has_run_twice,
    open_past_patience,
)
from .conftest import assert_invariants, crowd, gate_of, issue

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def slow_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the read of the gate and that of PostgreSQL everybody becomes older than the patience."""
    read_known = gate_check.read_known

    def slowly(coupon_id: int, members: Any) -> Any:
        users = {str(one.user_id).encode() for one in members}
        wait_until(lambda: users <= open_past_patience(coupon_id), 10, "nobody grows older", 0.02)
        return read_known(coupon_id, members)

    monkeypatch.setattr(gate_check, "read_known", slowly)


@pytest.fixture
def postgresql_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reverse order: what PostgreSQL knows of requests is read before the gate is."""
    read, read_known = GateStore.read, gate_check.read_known
    accepted: set[Any] = set()

    def read_late(gate: GateStore, users: Any) -> Any:
        if not users or isinstance(users[0], int):
            return read(gate, users)
        before = open_past_patience(gate.coupon_id)
        accepted.update(OutboxMessage.objects.values_list("event_id", flat=True))
        # In vain once the crowd is over.
        with suppress(TimeoutError):
            wait_until(lambda: len(open_past_patience(gate.coupon_id) - before) > 100, 2, "nobody comes", 0.02)
        return read(gate, list({*users, *(field for some in gate.fields() for field in some)}))

    def known_before(coupon_id: int, members: Any) -> Any:
        now = read_known(coupon_id, members)
        unknown = gate_check.KnownRequest(False, False, None, None)
        return now._replace(requests={id_: one if id_ in accepted else unknown for id_, one in now.requests.items()})

    monkeypatch.setattr(GateStore, "read", read_late)
    monkeypatch.setattr(gate_check, "read_known", known_before)


@pytest.fixture
def no_second_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fail_orphaned, "_unwritten", set)


@pytest.fixture
def wide(make_coupon: Callable[..., Coupon]) -> Coupon:
    return make_coupon(admission="gate", total_quantity=50_000)


def test_a_crowd_is_left_alone_however_long_the_reads_take(
    wide: Coupon, slow_reads: None, no_second_look: None
) -> None:
    assert crowd_of_three_lines(wide, has_run_twice).found == {}
    assert not IssueRequest.objects.exists()


def test_in_the_reverse_order_of_reads_innocents_would_be_ended(
    wide: Coupon, postgresql_first: None, no_second_look: None
) -> None:
    crowd_of_three_lines(wide, has_found_leaks)
    assert IssueRequest.objects.filter(reason="ERROR").exists()


def test_before_a_request_is_ended_it_is_looked_for_once_more(wide: Coupon, postgresql_first: None) -> None:
    assert has_found_leaks(crowd_of_three_lines(wide, has_found_leaks))
    assert not IssueRequest.objects.exists()


def test_a_crowd_gets_the_whole_stock_beside_a_reconciler(make_coupon: Callable[..., Coupon]) -> None:
    coupon = make_coupon(admission="gate", total_quantity=100)
    over = threading.Event()

    def issue_until_over() -> None:
        while not over.is_set():
            issue()

    with Running() as running:
        issuer = threading.Thread(target=partial(_in_thread, issue_until_over))
        issuer.start()
        told = crowd(coupon, range(1, 301))
        over.set()
        issuer.join()
    issue()
    assert told == {"accepted": 100, "sold_out": 200}
    assert running.found == {}
    assert set(IssueRequest.objects.values_list("status", flat=True)) == {"SUCCESS"}
    assert gate_of(coupon) == (set(UserCoupon.objects.values_list("user_id", flat=True)), set())
    assert_invariants()


def _in_thread(work: Callable[[], None]) -> None:
    try:
        work()
    finally:
        connection.close()
