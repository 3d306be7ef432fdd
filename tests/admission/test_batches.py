"""A bulk issue of a coupon with a gate or a reservation: what it asked for is not promised to who comes after it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytest

from coupons.admission.gate.store import GateStore
from coupons.issuance.accept_bulk import BulkIssue, bulk_accept
from coupons.models import Coupon, IssueRequest, Reservation, UserCoupon
from kafka_bridge.models import Alert, OutboxMessage

from .comparisons import mend, redis
from .conftest import ask, assert_invariants, at_once, gate_of, issue, stock

pytestmark = pytest.mark.django_db(transaction=True)

MakeCoupon = Callable[..., Coupon]

both = pytest.mark.parametrize("admission", ["gate", "reserve"])


def ask_for(coupon: Coupon, user_ids: Iterable[int]) -> int:
    return bulk_accept(batch=BulkIssue(coupon.id, coupon.coupon_type, "spring"), user_ids=list(user_ids))


def winners() -> set[int]:
    return set(UserCoupon.objects.values_list("user_id", flat=True))


@both
def test_pieces_of_a_batch_are_not_promised_to_who_comes_after_it(admission: str, make_coupon: MakeCoupon) -> None:
    coupon = make_coupon(admission=admission, total_quantity=5)
    assert ask(coupon, 1) == "accepted"
    assert ask_for(coupon, [2, 3, 4]) == 3
    assert [ask(coupon, user_id) for user_id in (5, 6, 2)] == ["accepted", "sold_out", "already_issued"]
    issue()
    assert winners() == {1, 2, 3, 4, 5}
    assert not IssueRequest.objects.filter(status="FAILED").exists()
    assert ask(coupon, 6) == "sold_out"
    assert_invariants()


@both
def test_a_batch_gets_what_is_left_and_takes_nothing_that_was_promised(admission: str, make_coupon: MakeCoupon) -> None:
    coupon = make_coupon(admission=admission, total_quantity=5)
    assert [ask(coupon, user_id) for user_id in (1, 2, 3)] == ["accepted"] * 3
    assert ask_for(coupon, [2, 10, 11, 12]) == 4
    issue()
    ends = IssueRequest.objects.filter(source="BATCH").values_list("user_id", "reason")
    assert dict(ends) == {2: "ALREADY_ISSUED", 10: None, 11: None, 12: "SOLD_OUT"}
    assert winners() == {1, 2, 3, 10, 11}
    assert stock(coupon) == (0, 5)
    assert not Alert.objects.exists()
    assert_invariants()


@both
def test_the_same_batch_again_and_two_at_once_take_each_piece_once(admission: str, make_coupon: MakeCoupon) -> None:
    coupon = make_coupon(admission=admission, total_quantity=50)
    at_once([partial(ask_for, coupon, range(1, 41))] * 4, threads=4)
    assert ask_for(coupon, range(1, 46)) == 5
    assert OutboxMessage.objects.count() == Reservation.objects.count() == 45
    assert [ask(coupon, user_id) for user_id in range(51, 57)] == ["accepted"] * 5 + ["sold_out"]
    issue()
    assert len(winners()) == 50
    assert not Reservation.objects.exists()
    assert_invariants()


def test_a_gate_hears_of_a_batch_also_when_it_was_not_there_or_not_told(
    make_coupon: MakeCoupon, monkeypatch: pytest.MonkeyPatch
) -> None:
    coupon = make_coupon(admission="gate", total_quantity=3)
    ask_for(coupon, [1])
    assert not redis().exists(*GateStore(coupon.id).keys)
    assert ask(coupon, 2) == "accepted"
    assert gate_of(coupon) == ({1, 2}, {1, 2})
    with monkeypatch.context() as patched:
        patched.setattr(GateStore, "add", lambda *_: 0)
        ask_for(coupon, [3])
    assert mend() == {"gate-missing": 1}
    assert ask(coupon, 4) == "sold_out"
    issue()
    assert gate_of(coupon) == ({1, 2, 3}, set())


def test_a_request_that_is_decided_before_the_gate_hears_of_it_does_not_stay_open(
    make_coupon: MakeCoupon, monkeypatch: pytest.MonkeyPatch
) -> None:
    coupon = make_coupon(admission="gate", total_quantity=3)
    ask(coupon, 1)
    add = GateStore.add

    def decide_first(*args: Any) -> None:
        Coupon.objects.update(total_quantity=1)
        issue()
        Coupon.objects.update(total_quantity=3)
        add(*args)

    monkeypatch.setattr(GateStore, "add", decide_first)
    ask_for(coupon, [2])
    assert IssueRequest.objects.get(user_id=2).reason == "SOLD_OUT"
    assert 2 not in gate_of(coupon)[0] | gate_of(coupon)[1]


def test_a_batch_does_not_need_the_gate(make_coupon: MakeCoupon, redis_away: None) -> None:
    coupon = make_coupon(admission="gate", total_quantity=1)
    assert ask_for(coupon, [1, 2]) == 2
    issue()
    assert dict(IssueRequest.objects.values_list("user_id", "reason")) == {1: None, 2: "SOLD_OUT"}
