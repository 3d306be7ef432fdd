"""A fourth admission is a module and a line in ADMISSIONS: whatever else there is takes it as it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.test import Client

from coupons.admission import ADMISSIONS, Admission, AdmissionRequest
from coupons.errors import SoldOut
from coupons.models import Coupon, UserCoupon
from couponsite.auth.tokens import issue_access_token
from kafka_bridge.models import DeadLetter, OutboxMessage
from tests.support.messages import message, request_body

from .conftest import accept, answer, ask, assert_invariants, issue

pytestmark = pytest.mark.django_db(transaction=True)

CREATE = ("create_coupon", "SUMMER", "--quantity", "5", "--admission", "even")


class Even(Admission):
    """Lets in users with an even number, and tells them their half of it as their place."""

    may_refuse = True

    def admit(self, candidates: Sequence[AdmissionRequest]) -> None:
        for one in candidates:
            if one.user_id % 2:
                one.refusal = SoldOut
            else:
                one.sequence = one.user_id // 2


@pytest.fixture
def even(monkeypatch: pytest.MonkeyPatch) -> Coupon:
    """A coupon of the command's, with an admission that came with one line."""
    monkeypatch.setitem(ADMISSIONS, "even", Even())
    call_command(*CREATE, stdout=StringIO())
    return Coupon.objects.get()


def test_its_requests_go_the_way_of_all_others(even: Coupon, client: Client) -> None:
    assert ask(even, 1) == "sold_out"
    accepted = accept(even, 2)
    assert accepted.sequence == 1
    (row,) = OutboxMessage.objects.all()
    body = json.loads(bytes(row.payload or b""))
    assert (body["admission"], body["sequence"]) == ("even", 1)
    issue()
    assert answer(accepted.request_id) == ("SUCCESS", None)
    assert UserCoupon.objects.get().user_id == 2
    headers = {"Authorization": f"Bearer {issue_access_token(1)}"}
    assert client.get(f"/api/v1/coupons/{even.id}", headers=headers).json()["admission"] == "even"
    assert_invariants()


def test_the_admin_offers_and_keeps_it(even: Coupon, admin_client: Client) -> None:
    page = admin_client.get(f"/admin/coupons/coupon/{even.id}/change/").content.decode()
    assert '<option value="even" selected' in page
    assert '<option value="queue"' in page


def test_without_its_line_nobody_can_choose_or_claim_it(make_coupon: Callable[..., Coupon]) -> None:
    with pytest.raises(CommandError, match="invalid choice: 'even'"):
        call_command(*CREATE)
    issue([message(request_body(make_coupon(), 2, admission="even"))])
    assert DeadLetter.objects.get().error_message == "admission must be queue or gate or reserve"
