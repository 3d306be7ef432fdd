"""Gate and reserve through the real processes, with everything killed and Redis emptied in the middle of the crowd."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import pytest
from django_redis import get_redis_connection

from coupons import invariants
from coupons.models import Coupon, IssueRequest, Reservation
from demo.load_client import Answer
from devstack import wait_until
from tests.processes.conftest import STOCK, Web, when_accepted, when_issued
from tests.support.burst import Burst
from tests.support.ledger import RESULT_SECONDS
from tests.support.service import Service, kill_group

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.parametrize("admission", ["gate", "reserve"])]

Begin = Callable[..., Burst]


@pytest.fixture
def coupons(transactional_db: None, admission: str, coupons: list[Coupon], redis_flushed: None) -> list[Coupon]:
    Coupon.objects.update(admission=admission)
    return coupons


def assert_every_promise_is_kept(answers: Sequence[Answer], coupons: Sequence[Coupon]) -> None:
    accepted = {answer.request_id for answer in answers if answer.request_id}
    ended = IssueRequest.objects.filter(request_id__in=accepted)
    wait_until(lambda: ended.count() == len(accepted), RESULT_SECONDS, "accepted requests without a result")
    assert Counter(answer.status for answer in answers).keys() <= {202, 409}
    assert not Reservation.objects.exists()
    assert {name: lines for name, lines in invariants.violations() if lines} == {}
    assert [Coupon.objects.get(id=coupon.id).issued for coupon in coupons] == [STOCK] * len(coupons)


def test_a_crowd_gets_the_whole_stock_and_the_others_are_told_at_once(
    service: Service, burst: Begin, coupons: Sequence[Coupon], admission: str
) -> None:
    service.start("relay")
    service.start("issuer")
    answers = burst(3000, 1500).finish()
    assert_every_promise_is_kept(answers, coupons)
    assert Counter(answer.status for answer in answers) == {202: STOCK * 2, 409: 3000 - STOCK * 2}
    assert set(IssueRequest.objects.values_list("status", flat=True)) == {"SUCCESS"}


def test_with_everything_killed_and_redis_emptied_no_promise_is_broken_and_no_piece_lost(
    web: Web, service: Service, burst: Begin, coupons: Sequence[Coupon], admission: str
) -> None:
    processes = [web.process, service.start("relay"), service.start("issuer", "--batch-size", "50")]
    crowd = burst(3000, 1500)
    when_accepted(crowd, 50)
    get_redis_connection("default").flushdb()
    when_issued(50)
    for process in processes:
        kill_group(process)
    get_redis_connection("default").flushdb()
    for process in processes:
        process.start()
    assert_every_promise_is_kept(crowd.finish(), coupons)
