"""A partition waits for a service that is away: no longer than it must, and not without an operator knowing."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import pytest

from common.processes.lifecycle import StopFlag
from devstack import wait_until
from kafka_bridge.client import Message, group_lag
from kafka_bridge.consuming import retrying_partitions
from kafka_bridge.consuming.consumer import GroupConsumer
from kafka_bridge.consuming.received import received
from kafka_bridge.models import Alert, DeadLetter
from kafka_bridge.registry import ReceivedMessage
from orders.effects import notification
from tests.effects.cast import completed_body
from tests.support.kafka import consume_everything, produce
from tests.support.provider import Answer, Call, Provider
from tests.support.threads import in_another_session

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("topics")]


def pay(*order_ids: int) -> None:
    """Orders that are all on one partition."""
    produce("order-completed", [json.dumps(completed_body(order_id)).encode() for order_id in order_ids])


def lag() -> int:
    group = notification.group()
    return group_lag(group.group_id, group.topics)


@pytest.fixture
def consuming() -> Iterator[Callable[[], None]]:
    """``consuming()`` starts the consumer in the background."""
    stop, running = StopFlag(), list[Future[None]]()
    yield lambda: running.append(in_another_session(lambda: GroupConsumer(notification.group()).run(stop)))
    stop.request()
    for consumer in running:
        consumer.result(30)


def never_for_the_first_user(call: Call) -> Answer:
    return 500 if b'"userId":7001' in call.body else 200


def test_a_message_that_the_service_never_manages_is_found_out_by_those_behind_it(
    alimtalk: Provider, consuming: Callable[[], None]
) -> None:
    alimtalk.answer = never_for_the_first_user
    pay(1)
    consuming()
    wait_until(lambda: len(alimtalk.calls) >= 6, 30, "the message is not tried again")
    assert (lag(), DeadLetter.objects.count()) == (1, 0)

    pay(2, 3)
    wait_until(lambda: lag() == 0, 30, "those behind it wait for ever")
    assert {json.loads(call.body)["userId"] for call in alimtalk.effects.values()} == {7002, 7003}
    letter = DeadLetter.objects.get()
    assert (letter.offset, letter.error_message) == (0, "answered 500")


def test_a_group_that_was_down_catches_up_in_order(alimtalk: Provider) -> None:
    pay(*range(1, 61))
    consume_everything(notification.group(), batch_size=20)
    users = [json.loads(call.body)["userId"] for call in alimtalk.effects.values()]
    batches = [users[start : start + 20] for start in (0, 20, 40)]
    assert [sorted(batch) for batch in batches] == [list(range(first, first + 20)) for first in (7001, 7021, 7041)]


def test_a_partition_that_waits_takes_in_no_more_than_a_batch(
    alimtalk: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken_in: list[int] = []

    def count(message: Message, topic: str, partition: int) -> ReceivedMessage:
        arrived = received(message, topic, partition)
        taken_in.append(arrived.offset)
        return arrived

    monkeypatch.setattr("kafka_bridge.consuming.consumer.received", count)
    alimtalk.answer = lambda call: 503
    pay(*range(1, 201))
    stop, consumer = StopFlag(), GroupConsumer(notification.group(), batch_size=20)
    running = in_another_session(lambda: consumer.run(stop))
    try:
        wait_until(lambda: len(alimtalk.calls) >= 300, 60, "the batch is not tried again")
        assert 20 <= len(taken_in) < 40
        alimtalk.answer = lambda call: 200
        wait_until(lambda: lag() == 0, 60, "the consumer does not go on")
    finally:
        stop.request()
        running.result(30)
    assert len(alimtalk.effects) == 200


def test_an_operator_is_told_of_a_wait_that_is_long_and_of_its_end(
    alimtalk: Provider, consuming: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    alimtalk.answer = lambda call: 500
    pay(1)
    consuming()
    wait_until(lambda: len(alimtalk.calls) >= 3, 30, "nothing is called")
    assert not Alert.objects.exists()
    monkeypatch.setattr(retrying_partitions, "ALERT_AFTER_SECONDS", 0.5)
    wait_until(Alert.objects.exists, 30, "no alert was opened")
    alert = Alert.objects.get()
    assert (alert.rule, alert.severity, alert.ended_at) == ("waiting-notification", "critical", None)
    assert "order-completed[" in alert.summary
    assert "nothing gets through to AlimTalk: answered 500" in alert.summary
    assert alert.runbook == "docs/runbooks/waiting.md"

    alimtalk.answer = lambda call: 200
    wait_until(lambda: not Alert.objects.filter(ended_at=None).exists(), 30, "the alert does not end")
    assert Alert.objects.count() == 1
    assert len(alimtalk.effects) == 1


def test_the_alert_of_a_consumer_that_died_is_ended_by_the_next(
    alimtalk: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = retrying_partitions.RetryingPartitions("notification")
    with monkeypatch.context() as patched:
        patched.setattr(retrying_partitions, "ALERT_AFTER_SECONDS", 0.0)
        left.retry_later(("order-completed", 0), "here", "AlimTalk is away, and the consumer is killed")
    assert Alert.objects.filter(ended_at=None).count() == 1
    pay(1)
    consume_everything(notification.group())
    assert not Alert.objects.filter(ended_at=None).exists()


def test_a_short_wait_does_not_end_the_alert_of_another_consumer(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = (
        retrying_partitions.RetryingPartitions("notification"),
        retrying_partitions.RetryingPartitions("notification"),
    )
    mine, others = ("order-completed", 0), ("order-completed", 1)
    one.resume(mine)
    with monkeypatch.context() as patched:
        patched.setattr(retrying_partitions, "ALERT_AFTER_SECONDS", 0.0)
        other.retry_later(others, "here", "AlimTalk is away")
    one.retry_later(mine, "there", "a deadlock")
    assert one.resume(mine) is True
    assert Alert.objects.filter(ended_at=None).count() == 1


def test_one_partition_that_goes_on_does_not_end_the_alert_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying_partitions, "ALERT_AFTER_SECONDS", 0.0)
    partitions = retrying_partitions.RetryingPartitions("notification")
    first, second = ("order-completed", 0), ("order-completed", 1)
    for partition in (first, second):
        partitions.retry_later(partition, "here", "AlimTalk is away")
    assert partitions.resume(first) is True
    assert partitions.resume(first) is False
    assert Alert.objects.filter(ended_at=None).count() == 1
    assert partitions.resume(second) is True
    assert not Alert.objects.filter(ended_at=None).exists()
