"""What becomes of requests under way when their coupon begins to let others in another way: nobody is forgotten."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from coupons.coupon_cache import coupon_cache
from coupons.models import Coupon, IssueRequest, UserCoupon

from .conftest import ask, assert_invariants, issue, stock

pytestmark = pytest.mark.django_db(transaction=True)

MakeCoupon = Callable[..., Coupon]


def change(coupon: Coupon, admission: str) -> None:
    Coupon.objects.filter(id=coupon.id).update(admission=admission)
    coupon_cache.clear()


@pytest.mark.parametrize(
    ("before", "after", "winners"),
    [
        ("queue", "gate", {1, 2}),
        ("queue", "reserve", {3, 4}),
        ("gate", "reserve", {3, 4}),
    ],
)
def test_who_is_under_way_and_not_counted_leaves_pieces_that_are_promised_again(
    before: str, after: str, winners: set[int], make_coupon: MakeCoupon
) -> None:
    coupon = make_coupon(admission=before, total_quantity=2)
    assert [ask(coupon, 1), ask(coupon, 2)] == ["accepted"] * 2
    change(coupon, after)
    assert [ask(coupon, 3), ask(coupon, 4), ask(coupon, 5)] == ["accepted", "accepted", "sold_out"]
    issue()
    assert set(UserCoupon.objects.values_list("user_id", flat=True)) == winners
    refused = IssueRequest.objects.exclude(user_id__in=winners)
    assert set(refused.values_list("user_id", "reason")) == {(user, "SOLD_OUT") for user in {1, 2, 3, 4} - winners}
    assert ask(coupon, 6) == "sold_out"
    assert_invariants()


@pytest.mark.parametrize("after", ["gate", "queue"])
def test_what_reserve_has_promised_is_kept_whatever_comes_after_it(after: str, make_coupon: MakeCoupon) -> None:
    coupon = make_coupon(admission="reserve", total_quantity=2)
    assert [ask(coupon, 1), ask(coupon, 2)] == ["accepted"] * 2
    change(coupon, after)
    assert ask(coupon, 3) == ("sold_out" if after == "gate" else "accepted")
    issue()
    assert set(UserCoupon.objects.values_list("user_id", flat=True)) == {1, 2}
    assert stock(coupon) == (0, 2)
    assert_invariants()


@pytest.mark.parametrize(("before", "after"), [("queue", "gate"), ("queue", "reserve"), ("gate", "reserve")])
def test_a_change_while_nothing_is_under_way_breaks_no_promise(
    before: str, after: str, make_coupon: MakeCoupon
) -> None:
    coupon = make_coupon(admission=before, total_quantity=2)
    assert ask(coupon, 1) == "accepted"
    issue()
    change(coupon, after)
    assert [ask(coupon, user_id) for user_id in (1, 2, 3)] == ["already_issued", "accepted", "sold_out"]
    issue()
    assert stock(coupon) == (0, 2)
    assert not IssueRequest.objects.exclude(status="SUCCESS").exists()
    assert_invariants()
