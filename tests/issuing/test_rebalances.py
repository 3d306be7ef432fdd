"""A consumer that loses its partitions with a batch in hand issues nothing twice."""

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from django.db import IntegrityError

from common.processes.lifecycle import StopFlag
from coupons.consumer_groups import ISSUE
from coupons.issuance import issue
from coupons.messages import IssueTask
from coupons.models import Coupon, IssueRequest, UserCoupon
from devstack.processes import wait_until
from kafka_bridge.client import group_lag
from kafka_bridge.consuming.consumer import GroupConsumer
from kafka_bridge.registry import ConsumerGroup
from tests.support.kafka import produce
from tests.support.messages import request_body
from tests.support.threads import in_another_session

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("topics")]

MakeCoupon = Callable[..., Coupon]
TOPIC = "coupon-issue-request"


@pytest.fixture(autouse=True)
def _short_pauses(settings: Any) -> None:
    settings.CONSUMER_BACKOFF_SECONDS = 0.05


def ask(coupon: Coupon, user_ids: Sequence[int]) -> None:
    produce(TOPIC, [json.dumps(request_body(coupon, user_id)).encode() for user_id in user_ids])


def lag() -> int:
    return group_lag(ISSUE.group_id, ISSUE.topics)


def winners() -> list[int]:
    return sorted(UserCoupon.objects.values_list("user_id", flat=True))


def consume_in_background(group: ConsumerGroup, stop: StopFlag) -> Any:
    return in_another_session(lambda: GroupConsumer(group).run(stop))


class Rebalance:
    """A consumer that hangs with a batch in hand, until the broker gives its partitions to another one."""

    def __init__(self) -> None:
        self.hanging = threading.Event()
        self.wake = threading.Event()
        self.second_try: list[BaseException | None] = []

    def issue(self, tasks: Sequence[IssueTask]) -> None:
        if not self.wake.is_set():
            self.hanging.set()
            self.wake.wait(60)
            try:
                issue.issue_many(tasks)
                self.second_try.append(None)
            except BaseException as error:
                self.second_try.append(error)
                raise
        else:
            issue.issue_many(tasks)

    def run(self) -> None:
        """Returns when the hanging one has woken up and everything is committed."""
        zombie_stop, heir_stop = StopFlag(), StopFlag()
        zombie = consume_in_background(replace(ISSUE, handle=self.issue), zombie_stop)
        assert self.hanging.wait(30)
        heir = consume_in_background(ISSUE, heir_stop)
        wait_until(lambda: lag() == 0, 60, "nobody takes over the partition")
        self.wake.set()
        wait_until(lambda: self.second_try, 20, "the zombie does not wake up")
        zombie_stop.request()
        heir_stop.request()
        zombie.result(30)
        heir.result(30)


@pytest.fixture
def soon_expelled(settings: Any) -> None:
    """Who does not poll for six seconds loses its partitions."""
    settings.KAFKA_CONSUMER_CONFIG = {"session.timeout.ms": 6000, "max.poll.interval.ms": 6000}


@pytest.mark.usefixtures("soon_expelled")
def test_a_rebalance_in_mid_batch_gives_nobody_two_and_moves_no_offset_back(make_coupon: MakeCoupon) -> None:
    coupon = make_coupon(total_quantity=3)
    ask(coupon, [1, 2, 1, 3, 4])
    rebalance = Rebalance()
    rebalance.run()
    assert rebalance.second_try == [None]
    assert (winners(), lag()) == ([1, 2, 3], 0)
    coupon.refresh_from_db()
    assert coupon.issued == 3
    assert IssueRequest.objects.count() == 5


@pytest.mark.usefixtures("soon_expelled")
def test_without_the_inbox_the_zombie_of_a_rebalance_would_issue_again(
    make_coupon: MakeCoupon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(issue, "find_decided", lambda request_ids: set())
    monkeypatch.setattr(issue, "_holders", lambda claims: set())
    ask(make_coupon(total_quantity=20), [1, 2, 3])
    rebalance = Rebalance()
    rebalance.run()
    assert isinstance(rebalance.second_try[0], IntegrityError)
