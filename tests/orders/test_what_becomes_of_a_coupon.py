"""A coupon on its way through orders: what outlives its time, what goes back, and what is written down."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from django.db import DatabaseError, connection, transaction

from coupons import invariants as coupon_invariants
from coupons.models import Coupon, CouponLedgerEntry, IssueRequest, UserCoupon
from orders import invariants as order_invariants
from tests.admission.conftest import ask, issue
from tests.edge.conftest import assert_problem

from .conftest import ALICE, BOB, ORDERS, Call, GiveCoupon

# The provider is never asked inside a transaction, so there is none around the tests either.
pytestmark = pytest.mark.django_db(transaction=True)

Place = Callable[..., int]

CAROL = 1003
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.mark.usefixtures("redis_flushed")
@pytest.mark.parametrize("admission", ["queue", "gate", "reserve"])
def test_the_last_piece_that_a_refund_returned_goes_to_somebody_else(
    call: Call, place: Place, make_coupon: Callable[..., Coupon], admission: str
) -> None:
    coupon = make_coupon(admission=admission, total_quantity=1, refund_policy="RETURN_TO_POOL")
    ask(coupon, ALICE)
    issue()
    order = f"{ORDERS}/{place(userCouponId=UserCoupon.objects.get().id)}"
    for step in ("pay", "cancel", "cancel"):
        assert call("POST", f"{order}/{step}").status_code == 200
    told = [ask(coupon, user_id) for user_id in (ALICE, BOB, CAROL)]
    issue()
    if admission == "queue":
        assert told == ["accepted"] * 3
        reasons = dict(IssueRequest.objects.order_by("processed_at").values_list("user_id", "reason"))
        assert reasons == {ALICE: "ALREADY_ISSUED", BOB: None, CAROL: "SOLD_OUT"}
    else:
        assert told == ["already_issued", "accepted", "sold_out"]
    assert dict(UserCoupon.objects.values_list("user_id", "status")) == {ALICE: "REVOKED", BOB: "ISSUED"}
    coupon.refresh_from_db()
    assert (coupon.issued, coupon.reserved) == (1, 0)
    violations = [*coupon_invariants.violations(), *order_invariants.violations()]
    assert [name for name, lines in violations if lines] == []


def test_a_coupon_that_expires_while_it_is_held_is_good_for_that_order_and_for_no_other(
    call: Call, place: Place, give_coupon: GiveCoupon
) -> None:
    mine = give_coupon(discount_value=100)
    order_id = place(userCouponId=mine.id)
    UserCoupon.objects.update(expires_at=LONG_AGO)
    assert call("GET", f"/api/v1/users/{ALICE}/coupons").json()["results"][0]["status"] == "HELD"
    assert call("POST", f"{ORDERS}/{order_id}/pay").status_code == 200
    assert call("POST", f"{ORDERS}/{order_id}/cancel").status_code == 200
    assert call("GET", f"/api/v1/users/{ALICE}/coupons").json()["results"][0]["status"] == "EXPIRED"
    items = call("GET", f"{ORDERS}/{order_id}").json()["items"]
    wish = {"items": [{"productId": items[0]["productId"], "quantity": 1}], "userCouponId": mine.id}
    assert "expired" in assert_problem(call("POST", ORDERS, wish), 409, "coupon_not_usable")["detail"]


@pytest.mark.parametrize(
    "statement", ["UPDATE coupons_couponledgerentry SET cause = ''", "DELETE FROM coupons_couponledgerentry"]
)
def test_a_step_of_the_ledger_stays(place: Place, give_coupon: GiveCoupon, statement: str) -> None:
    place(userCouponId=give_coupon().id)
    with pytest.raises(DatabaseError, match="append-only"), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement)
    assert CouponLedgerEntry.objects.get().cause == "order created"
