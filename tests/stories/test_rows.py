"""What the stories read from PostgreSQL: refused inserts and their times, and the transaction of rows."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, cast

import pytest
from django.db import DatabaseError, transaction
from django.utils import timezone

from coupons.models import Coupon, UserCoupon
from demo.stories.rows import failing_inserts, refusals
from demo.stories.story import Scene, StoryFailed, ToldBefore, make_coupon
from tests.support.factories import CouponFactory

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def coupon() -> Coupon:
    return CouponFactory.create()


@pytest.fixture
def scene() -> Scene:
    """A scene without processes."""
    nothing = cast(Any, None)
    return Scene(nothing, nothing, nothing, nothing, {}, Path(), None)


def give(coupon: Coupon, user_id: int) -> UserCoupon:
    return UserCoupon.objects.create(coupon=coupon, user_id=user_id, issued_at=timezone.now())


def test_the_times_of_refused_inserts_are_measured(coupon: Coupon, settings: Any) -> None:
    settings.CONSUMER_MAX_ATTEMPTS = 3
    with failing_inserts(13):
        assert refusals() == []
        began = time.time()
        for _ in range(2):
            with pytest.raises(DatabaseError, match="refuses the coupon of user 13"):
                give(coupon, 13)
            time.sleep(0.2)
        give(coupon, 14)
        first, second = refusals()
    assert first == pytest.approx(began, abs=0.2)
    assert 0.2 <= second - first < 0.5
    give(coupon, 13)


def test_one_try_too_many_is_noticed(coupon: Coupon, settings: Any) -> None:
    settings.CONSUMER_MAX_ATTEMPTS = 1
    with failing_inserts(13):
        for _ in range(3):
            with pytest.raises(DatabaseError):
                give(coupon, 13)
        assert len(refusals()) == 2


def test_rows_of_several_transactions_are_named(coupon: Coupon, scene: Scene) -> None:
    with transaction.atomic():
        first, second = give(coupon, 1), give(coupon, 2)
    later = give(coupon, 3)
    number = scene.expect_one_transaction(first=first, second=second)
    with pytest.raises(StoryFailed, match=f"first of {number}, user coupon of"):
        scene.expect_one_transaction(first=first, user_coupon=later)


def test_the_coupon_of_an_earlier_run_is_not_taken_for_a_new_one(coupon: Coupon) -> None:
    with pytest.raises(ToldBefore, match=f"has the coupon {coupon.coupon_type} of an earlier run"):
        make_coupon(coupon.coupon_type, 5)
