"""Two issuers at work on one coupon at once; each guard is proven by what happens without it."""

from collections.abc import Callable, Sequence

import pytest
from django.db import IntegrityError, transaction

from coupons.issuance import issue
from coupons.issuance.finish import find_decided
from coupons.messages import IssueTask, read_issue_task
from coupons.models import Coupon, IssueRequest, UserCoupon
from kafka_bridge.registry import ReceivedMessage
from tests.support.messages import requests
from tests.support.threads import OpenTransaction, in_another_session, wait_until_blocked

pytestmark = pytest.mark.django_db(transaction=True)

MakeCoupon = Callable[..., Coupon]


@pytest.fixture
def without_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(issue, "_LOCK_COUPONS", issue._LOCK_COUPONS.replace("FOR NO KEY UPDATE", ""))


@pytest.fixture
def reading_before_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decision that reads first and locks then: what it read is old by the time it has the lock."""
    lock = issue._lock_coupons

    def read_then_lock(tasks: Sequence[IssueTask]) -> object:
        decided = find_decided([task.request_id for task in tasks])
        monkeypatch.setattr(issue, "find_decided", lambda request_ids: decided)
        monkeypatch.setattr(issue, "_holders", lambda claims: set())
        return lock(tasks)

    monkeypatch.setattr(issue, "_lock_coupons", read_then_lock)


def tasks(messages: Sequence[ReceivedMessage]) -> list[IssueTask]:
    return [read_issue_task(item) for item in messages]


def issue_batch(messages: Sequence[ReceivedMessage]) -> None:
    with transaction.atomic():
        issue.issue_many(tasks(messages))


def issue_beside(holding: Sequence[ReceivedMessage], waiting: Sequence[ReceivedMessage]) -> None:
    """Issues ``waiting`` while another session has issued ``holding`` and not committed yet."""
    with OpenTransaction(lambda: issue.issue_many(tasks(holding))) as other:
        mine = in_another_session(lambda: issue_batch(waiting))
        wait_until_blocked(beside=mine)
        other.commit()
        mine.result(10)


def winners() -> set[int]:
    return set(UserCoupon.objects.values_list("user_id", flat=True))


def test_two_batches_at_once_share_the_stock(make_coupon: MakeCoupon) -> None:
    coupon = make_coupon(total_quantity=3)
    issue_beside(requests(coupon, [1, 2]), requests(coupon, [3, 4]))
    assert winners() == {1, 2, 3}
    assert IssueRequest.objects.get(user_id=4).reason == "SOLD_OUT"


@pytest.mark.usefixtures("without_the_lock")
def test_without_the_lock_two_batches_at_once_would_oversell(make_coupon: MakeCoupon) -> None:
    coupon = make_coupon(total_quantity=3)
    with pytest.raises(IntegrityError, match="coupon_stock"):
        issue_beside(requests(coupon, [1, 2]), requests(coupon, [3, 4]))


def test_a_user_in_two_batches_at_once_gets_one_coupon(make_coupon: MakeCoupon) -> None:
    coupon = make_coupon()
    issue_beside(requests(coupon, [1]), requests(coupon, [1, 2]))
    assert sorted(UserCoupon.objects.values_list("user_id", flat=True)) == [1, 2]
    assert sorted(IssueRequest.objects.filter(user_id=1).values_list("status", flat=True)) == ["FAILED", "SUCCESS"]


@pytest.mark.usefixtures("without_the_lock")
def test_without_the_lock_a_user_in_two_batches_at_once_would_get_two(make_coupon: MakeCoupon) -> None:
    coupon = make_coupon()
    with pytest.raises(IntegrityError, match="one_coupon_per_user"):
        issue_beside(requests(coupon, [1]), requests(coupon, [1, 2]))


def test_a_zombie_that_still_holds_the_lock_with_half_of_the_batch_costs_nobody_anything(
    make_coupon: MakeCoupon,
) -> None:
    coupon = make_coupon(total_quantity=10)
    batch = requests(coupon, range(1, 11))
    issue_beside(batch[:5], batch)
    assert winners() == set(range(1, 11))
    assert IssueRequest.objects.filter(status="SUCCESS").count() == 10


@pytest.mark.usefixtures("reading_before_the_lock")
def test_reading_before_the_lock_would_decide_the_zombies_half_again(make_coupon: MakeCoupon) -> None:
    coupon = make_coupon(total_quantity=10)
    batch = requests(coupon, range(1, 11))
    with pytest.raises(IntegrityError):
        issue_beside(batch[:5], batch)


def test_a_zombie_that_dies_with_half_of_the_batch_leaves_it_to_the_next(make_coupon: MakeCoupon) -> None:
    coupon = make_coupon(total_quantity=10)
    batch = requests(coupon, range(1, 11))
    with OpenTransaction(lambda: issue.issue_many(tasks(batch[:5]))) as zombie:
        mine = in_another_session(lambda: issue_batch(batch))
        wait_until_blocked()
        zombie.rollback()
        mine.result(10)
    assert winners() == set(range(1, 11))


def test_batches_of_many_coupons_in_any_order_do_not_deadlock(make_coupon: MakeCoupon) -> None:
    one, two = make_coupon(), make_coupon()
    with OpenTransaction(lambda: issue.issue_many(tasks(requests(one, [1])))) as other:
        first = in_another_session(lambda: issue_batch([*requests(two, [1, 2]), *requests(one, [2])]))
        second = in_another_session(lambda: issue_batch([*requests(one, [3]), *requests(two, [3])]))
        wait_until_blocked(2)
        other.commit()
        first.result(10)
        second.result(10)
    assert UserCoupon.objects.count() == 6
