"""A consumer that loses its partitions with a batch in hand issues nothing twice."""

import json
from collections.abc import Callable, Sequence

import pytest
from django.db import IntegrityError
from pytest_django import Settings

from coupons.consumer_groups import ISSUE
from coupons.issuance import issue
from coupons.models import Coupon, IssueRequest, UserCoupon
from kafka_bridge.client import group_lag
from tests.support.kafka import produce
from tests.support.messages import request_body
from tests.support.rebalance import SOON_EXPELLED, Rebalance

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("topics")]

MakeCoupon = Callable[..., Coupon]


@pytest.fixture(autouse=True)
def _soon_expelled(settings: Settings) -> None:
    settings.CONSUMER_BACKOFF_SECONDS = 0.05
    settings.KAFKA_CONSUMER_CONFIG = SOON_EXPELLED


def ask(coupon: Coupon, user_ids: Sequence[int]) -> None:
    produce("coupon-issue-request", [json.dumps(request_body(coupon, user_id)).encode() for user_id in user_ids])


def lag() -> int:
    return group_lag(ISSUE.group_id, ISSUE.topics)


def winners() -> list[int]:
    return sorted(UserCoupon.objects.values_list("user_id", flat=True))


def test_a_rebalance_in_mid_batch_gives_nobody_two_and_moves_no_offset_back(make_coupon: MakeCoupon) -> None:
    coupon = make_coupon(total_quantity=3)
    ask(coupon, [1, 2, 1, 3, 4])
    rebalance = Rebalance(ISSUE)
    rebalance.run()
    assert rebalance.second_try == [None]
    assert (winners(), lag()) == ([1, 2, 3], 0)
    coupon.refresh_from_db()
    assert coupon.issued == 3
    assert IssueRequest.objects.count() == 5


def test_without_the_inbox_the_zombie_of_a_rebalance_would_issue_again(
    make_coupon: MakeCoupon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(issue, "find_decided", lambda request_ids: set())
    monkeypatch.setattr(issue, "_holders", lambda claims: set())
    ask(make_coupon(total_quantity=20), [1, 2, 3])
    rebalance = Rebalance(ISSUE)
    rebalance.run()
    assert isinstance(rebalance.second_try[0], IntegrityError)
