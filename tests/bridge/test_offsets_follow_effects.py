"""A committed offset never runs ahead of the effects it stands for."""

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from django.db import IntegrityError, OperationalError

from common.processes.lifecycle import StopFlag
from coupons.consumer_groups import ISSUE
from coupons.issuance import issue
from coupons.messages import IssueTask
from coupons.models import Coupon, IssueRequest, UserCoupon
from devstack.processes import wait_until
from kafka_bridge.client import group_lag
from kafka_bridge.consuming.consumer import GroupConsumer
from kafka_bridge.models import DeadLetter
from kafka_bridge.registry import ConsumerGroup
from tests.support.kafka import consume_everything, header, produce, read_topic, relay_everything
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


def test_what_others_put_on_the_topic_is_issued_and_answered(make_coupon: MakeCoupon) -> None:
    coupon = make_coupon(total_quantity=2)
    ask(coupon, [1, 2, 3])
    consume_everything(ISSUE)
    assert (winners(), lag()) == ([1, 2], 0)
    relay_everything()
    results = [json.loads(item.value() or b"") for item in read_topic("coupon-issue-response", 3)]
    assert [(item["userId"], item["status"]) for item in results] == [(1, "SUCCESS"), (2, "SUCCESS"), (3, "FAILED")]


def test_poison_reaches_the_dead_letter_topic(make_coupon: MakeCoupon) -> None:
    ask(make_coupon(), [1])
    produce(TOPIC, [b"{"])
    consume_everything(ISSUE)
    relay_everything()
    (letter,) = read_topic(f"{TOPIC}.DLT", 1)
    assert letter.value() == b"{"
    assert header(letter, "x-error-class") == "PoisonMessage"
    assert winners() == [1]


def test_no_offset_moves_while_the_database_is_away(make_coupon: MakeCoupon) -> None:
    ask(make_coupon(), [1, 2])
    tries: list[int] = []
    away = True

    def handle(tasks: Sequence[IssueTask]) -> None:
        tries.append(len(tasks))
        if away:
            raise OperationalError("the server is away")
        issue.issue_many(tasks)

    stop = StopFlag()
    running = consume_in_background(replace(ISSUE, handle=handle), stop)
    wait_until(lambda: len(tries) >= 3, 20, "the batch is not tried again")
    assert (lag(), winners(), DeadLetter.objects.count()) == (2, [], 0)
    away = False
    wait_until(lambda: lag() == 0, 20, "the consumer does not go on")
    stop.request()
    running.result(20)
    assert winners() == [1, 2]


def test_a_partition_that_waits_does_not_hold_up_the_others(make_coupon: MakeCoupon) -> None:
    stuck, other = make_coupon(), make_coupon()
    tries: list[int] = []

    def handle(tasks: Sequence[IssueTask]) -> None:
        if any(task.request.coupon_id == stuck.id for task in tasks):
            tries.append(len(tasks))
            raise OperationalError("a lock that nobody gives up")
        issue.issue_many(tasks)

    for coupon, partition_key in ((stuck, b"A"), (other, b"B")):
        produce(TOPIC, [json.dumps(request_body(coupon, 1)).encode()], key=partition_key)
    assert len({message.partition() for message in read_topic(TOPIC, 2)}) == 2
    stop = StopFlag()
    running = consume_in_background(replace(ISSUE, handle=handle), stop)
    wait_until(lambda: len(tries) >= 2, 20, "the batch is not tried again")
    wait_until(lambda: lag() == 1, 20, "the other partition is held up")
    stop.request()
    running.result(20)
    assert UserCoupon.objects.get().coupon_id == other.id


def test_a_consumer_that_dies_before_its_offset_is_committed_repeats_nothing(
    make_coupon: MakeCoupon, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(make_coupon(), [1, 2])
    with monkeypatch.context() as patched:
        patched.setattr(GroupConsumer, "_commit", lambda *args: None)
        consume_everything(ISSUE)
    assert (lag(), winners()) == (2, [1, 2])
    answered = IssueRequest.objects.count()
    consume_everything(ISSUE)
    assert (lag(), winners(), IssueRequest.objects.count()) == (0, [1, 2], answered)


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
