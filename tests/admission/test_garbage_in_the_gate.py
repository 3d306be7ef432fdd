"""What no gate writes, in the keys of a gate: it does not get into requests."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from common.redis_client import redis_connection
from coupons.admission.gate.store import GateStore
from coupons.models import Coupon, IssueRequest, Reservation
from kafka_bridge.models import OutboxMessage

from .conftest import accept, answer, issue

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.mark.parametrize("sequence", ["inf", "nan", "-4", "1e300", "0x10", " 7", "9" * 20])
def test_a_sequence_that_is_no_place_in_line_is_counted_anew(sequence: str, make_coupon: Callable[..., Coupon]) -> None:
    coupon = make_coupon(admission="gate", total_quantity=3)
    accept(coupon, 1)
    redis_connection().hset(GateStore(coupon.id).keys.holders, "sequence", sequence)
    second, third = accept(coupon, 2), accept(coupon, 3)
    assert (second.sequence, third.sequence) == (2, 3)
    issue()
    assert {answer(one.request_id)[0] for one in (second, third)} == {"SUCCESS"}


@pytest.mark.parametrize("place", ["inf", "nan", "-4", "1e300", "9" * 20])
def test_a_place_in_line_that_is_none_is_not_answered(place: str, make_coupon: Callable[..., Coupon]) -> None:
    coupon = make_coupon(admission="gate", total_quantity=3)
    accepted = accept(coupon, 1, "k")
    redis_connection().hset(GateStore(coupon.id).keys.holders, "1", f"{accepted.request_id}:{place}")
    # As after a web process that died between the gate and its insert: the gate alone knows the place.
    OutboxMessage.objects.all().delete()
    Reservation.objects.all().delete()
    again = accept(coupon, 1, "k")
    assert (again.request_id, again.sequence) == (accepted.request_id, None)
    issue()
    assert IssueRequest.objects.get().status == "SUCCESS"
