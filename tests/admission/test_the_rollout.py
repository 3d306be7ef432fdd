"""Which users the Redis queue serves, and both ways at once."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

import pytest
from django.conf import settings
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django_redis import get_redis_connection

from coupons.admission.gate.store import GateStore
from coupons.coupon_cache import coupon_cache
from coupons.models import Coupon, IssueRequest, Reservation, UserCoupon
from coupons.rollout import uses_redis_queue
from kafka_bridge.models import OutboxMessage
from kafka_bridge.outbox.published import anything_unpublished

from .conftest import MakeGate, accept, assert_invariants, at_once, crowd, set_share, stock
from .workers import (
    by_worker,
    in_list,
    issue_by_kafka,
    succeeded,
    with_everybody_at_work,
    work,
)

pytestmark = pytest.mark.django_db(transaction=True)


def test_without_a_flag_everything_goes_through_kafka(make_gate: MakeGate) -> None:
    accept(make_gate(), 1)
    assert (in_list(), by_worker()) == ([], set())
    assert OutboxMessage.objects.get().published_at is None


@pytest.mark.usefixtures("everybody")
def test_with_all_of_the_share_nothing_goes_through_kafka(make_gate: MakeGate) -> None:
    accepted = accept(make_gate(), 1)
    assert in_list() == [str(accepted.request_id)]
    assert not anything_unpublished()
    row = OutboxMessage.objects.get()
    assert (row.topic, row.event_id) == ("issue-worker", accepted.request_id)


def test_a_third_of_the_users_goes_to_the_worker_and_always_the_same_ones(make_gate: MakeGate) -> None:
    set_share(30)
    first, second = make_gate(total_quantity=300), make_gate(total_quantity=300)
    assert crowd(first, range(1, 201)) == {"accepted": 200}
    chosen = by_worker()
    assert 40 <= len(chosen) <= 80
    Reservation.objects.all().delete()
    coupon_cache.clear()
    crowd(second, range(1, 201))
    assert by_worker() == chosen


def test_shares_are_met_and_a_larger_one_keeps_the_users_of_a_smaller_one() -> None:
    users = {share: {user for user in range(1, 20_001) if uses_redis_queue(user, share)} for share in (0, 5, 300, 999)}
    assert users[0] < users[5] < users[300] < users[999]
    assert [round(len(chosen) / 20_000, 2) for chosen in users.values()] == [0, 0.01, 0.3, 1]
    assert all(uses_redis_queue(user, 1000) for user in (1, 2**63 - 1))


def test_the_flag_of_a_coupon_wins_over_the_general_one(make_gate: MakeGate) -> None:
    own, other = make_gate(), make_gate()
    set_share(100)
    set_share(0, own)
    accept(own, 1)
    accept(other, 2)
    assert by_worker() == {2}
    set_share(0)
    set_share(100, own)
    accept(own, 3)
    accept(other, 4)
    assert by_worker() == {2, 3}


def test_a_flag_that_says_nothing_is_none(make_gate: MakeGate) -> None:
    own = make_gate()
    set_share(100)
    set_share(None)
    accept(make_gate(), 1)
    assert by_worker() == set()
    set_share(0, own)
    set_share(100)
    set_share(None, own)
    accept(own, 2)
    assert by_worker() == {2}


@pytest.mark.usefixtures("everybody")
@pytest.mark.parametrize("admission", ["queue", "reserve"])
def test_only_the_gate_has_a_worker(admission: str, make_coupon: Callable[..., Coupon]) -> None:
    accept(make_coupon(admission=admission), 1)
    assert in_list() == []
    assert anything_unpublished()


def test_the_way_back_is_nought_percent(make_gate: MakeGate) -> None:
    coupon = make_gate()
    set_share(100)
    accept(coupon, 1)
    set_share(0)
    accept(coupon, 2)
    assert by_worker() == {1}
    work()
    issue_by_kafka()
    assert stock(coupon) == (0, 2)


@pytest.mark.usefixtures("everybody")
def test_what_waits_for_a_worker_can_be_handed_over_to_kafka(make_gate: MakeGate) -> None:
    """With the statements of docs/operations.md, which name the worker's mark and Kafka's topic."""
    coupon = make_gate()
    accept(coupon, 1)
    work()
    accept(coupon, 2)
    manual = (settings.BASE_DIR / "docs/operations.md").read_text()
    [handing_over] = re.findall(r"```sql\n(BEGIN;.*?COMMIT;)\n", manual, re.DOTALL)
    with connection.cursor() as cursor:
        cursor.execute(handing_over)
    assert by_worker() == set()
    work()
    assert stock(coupon) == (0, 1)
    issue_by_kafka()
    assert stock(coupon) == (0, 2)
    assert set(IssueRequest.objects.values_list("partition", flat=True)) == {-1, 0}


def test_the_same_key_is_the_same_request_whatever_becomes_of_the_share(make_gate: MakeGate) -> None:
    coupon = make_gate()
    set_share(100)
    accepted = accept(coupon, 1, "k")
    set_share(0)
    assert accept(coupon, 1, "k") == accepted
    assert OutboxMessage.objects.count() == 1
    work()
    set_share(100)
    assert accept(coupon, 1, "k").request_id == accepted.request_id
    work()
    assert stock(coupon) == (0, 1)


def test_a_request_costs_no_query_more_than_without_flags(make_gate: MakeGate) -> None:
    coupon = make_gate()
    accept(coupon, 1)
    with CaptureQueriesContext(connection) as through_kafka:
        accept(coupon, 2)
    set_share(100)
    accept(coupon, 3)
    with CaptureQueriesContext(connection) as through_the_list:
        accept(coupon, 4)
    assert len(through_the_list) == len(through_kafka)


@pytest.mark.usefixtures("looks_around_at_once")
def test_both_ways_at_once_give_away_exactly_fifty(make_gate: MakeGate) -> None:
    set_share(50)
    coupon = make_gate(total_quantity=50)
    told: dict[str, int] = {}
    with_everybody_at_work(lambda: told.update(crowd(coupon, range(1, 301))))
    assert told == {"accepted": 50, "sold_out": 250}
    assert stock(coupon) == (0, 50)
    assert succeeded() == UserCoupon.objects.count() == 50
    assert {-1, 0} == set(IssueRequest.objects.values_list("partition", flat=True))
    assert_invariants()


def test_both_ways_at_once_give_away_no_more_than_there_is_when_the_gate_lets_in_too_many(make_gate: MakeGate) -> None:
    set_share(50)
    coupon = make_gate(total_quantity=50)
    crowd(coupon, range(1, 51))
    get_redis_connection("default").hdel(GateStore(coupon.id).keys.holders, *range(1, 31))  # the gate forgets thirty
    assert crowd(coupon, range(51, 81)) == {"accepted": 30}
    with_everybody_at_work(lambda: None)
    assert stock(coupon) == (0, 50)
    assert succeeded() == 50
    assert IssueRequest.objects.filter(reason="SOLD_OUT").count() == 30
    assert_invariants()


@pytest.mark.usefixtures("looks_around_at_once")
def test_the_share_is_changed_in_the_middle_of_a_burst(make_gate: MakeGate) -> None:
    coupon = make_gate(total_quantity=1000)

    def burst() -> None:
        for start, percent in [(0, 0), (100, 100), (200, 30), (300, 0)]:
            changed = partial(set_share, percent)
            calls = [partial(accept, coupon, user_id) for user_id in range(start + 1, start + 101)]
            at_once([*calls[:50], changed, *calls[50:]])

    with_everybody_at_work(burst)
    work()
    issue_by_kafka()
    assert succeeded() == IssueRequest.objects.count() == 400
    assert stock(coupon) == (0, 400)
    assert {-1, 0} == set(IssueRequest.objects.values_list("partition", flat=True))
    assert_invariants()
