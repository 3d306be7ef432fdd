"""What becomes of an effect that fails: tried again and buried, or logged and passed over (seed 004)."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import redis.exceptions
from django.db import OperationalError
from prometheus_client import REGISTRY

from common.http_calls import CallFailed, CallRefused
from common.processes.lifecycle import StopFlag
from common.processes.outages import ServiceUnavailable
from coupons.models import Notification
from kafka_bridge.consuming import batch as batches
from kafka_bridge.consuming.batch import BatchHandler
from kafka_bridge.errors import PoisonLimitExceeded
from kafka_bridge.models import DeadLetter, ProcessedEvent
from kafka_bridge.registry import ConsumerGroup, ReceivedMessage
from orders.effects import data_platform, monitoring, notification, ranking
from orders.messages import ORDER_COMPLETED
from tests.effects.cast import completed, many_completed
from tests.support.messages import message
from tests.support.provider import HANG, Answer, Provider

pytestmark = pytest.mark.django_db(transaction=True)

Outcomes = Sequence[Exception | None]
NAME = "notification"


def group_with(
    call: Callable[[Sequence[ReceivedMessage], StopFlag], Outcomes] | None = None, **options: Any
) -> ConsumerGroup:
    return ConsumerGroup(
        name=NAME,
        event_types=(ORDER_COMPLETED,),
        decode=lambda received: received,
        call=call,
        inbox=True,
        **options,
    )


def handle(group: ConsumerGroup, batch: Sequence[ReceivedMessage]) -> None:
    BatchHandler(group).handle(batch, StopFlag())


@pytest.fixture
def only_logged(settings: Any) -> None:
    settings.ORDER_EFFECT_POLICIES = {**settings.ORDER_EFFECT_POLICIES, NAME: "log_only"}


def passed_over() -> float:
    return REGISTRY.get_sample_value("consumer_passed_over_total", {"group": NAME}) or 0.0


def handled_offsets(batch: Sequence[ReceivedMessage]) -> list[int]:
    ids = set(ProcessedEvent.objects.filter(consumer_group=NAME).values_list("event_id", flat=True))
    return [item.offset for item in batch if item.inbox_id in ids]


@pytest.mark.parametrize("effect", [notification, data_platform, ranking, monitoring])
def test_every_effect_is_buried_when_it_fails_unless_the_settings_say_otherwise(effect: Any, settings: Any) -> None:
    assert effect.group().log_only is False
    settings.ORDER_EFFECT_POLICIES = {**settings.ORDER_EFFECT_POLICIES, effect.group().name: "log_only"}
    assert effect.group().log_only is True


@pytest.mark.usefixtures("only_logged")
@pytest.mark.parametrize("trouble", [500, 400, 401, HANG])
def test_a_failure_that_is_only_logged_is_counted_and_the_next_go_on(
    trouble: Answer, alimtalk: Provider, caplog: pytest.LogCaptureFixture, settings: Any
) -> None:
    settings.HTTP_TIMEOUT_SECONDS = 0.2
    before = passed_over()
    alimtalk.answer = lambda call: trouble
    failing = many_completed([1, 2])
    handle(notification.group(), failing)
    alimtalk.answer = lambda call: 200
    tries = len(alimtalk.calls)
    # What is passed over stays passed over.
    handle(notification.group(), [*failing, completed(3)])
    assert len(alimtalk.calls) == tries + 1

    assert passed_over() - before == 2
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert [line.split(":")[1].split()[0] for line in lines] == [str(item) for item in failing]
    assert not DeadLetter.objects.exists()


@pytest.mark.usefixtures("only_logged")
def test_what_cannot_be_read_is_passed_over_too() -> None:
    before = passed_over()
    handle(notification.group(), [message(b"{", topic="order-completed"), completed(1)])
    assert passed_over() - before == 1
    assert not DeadLetter.objects.exists()
    assert Notification.objects.count() == 1


def test_even_a_policy_that_only_logs_waits_for_the_database() -> None:
    def fail(messages: Sequence[Any]) -> None:
        raise OperationalError("the server is away")

    with pytest.raises(OperationalError):
        handle(group_with(handle=fail, log_only=True), [completed(1)])
    assert not ProcessedEvent.objects.exists()


@pytest.mark.parametrize(
    "error",
    [redis.exceptions.ConnectionError("away"), redis.exceptions.OutOfMemoryError("full"), ServiceUnavailable("away")],
)
def test_any_other_service_that_is_away_is_only_logged(error: Exception) -> None:
    def fail(messages: Sequence[Any]) -> None:
        raise error

    batch = many_completed(range(1, 6))
    before = passed_over()
    handle(group_with(handle=fail, log_only=True), batch)
    assert passed_over() - before == 5
    with pytest.raises(type(error)):
        handle(group_with(handle=fail), many_completed([6]))


def test_a_call_that_fails_while_others_get_through_is_buried_after_nine_tries(alimtalk: Provider) -> None:
    bad = str(7003)
    alimtalk.answer = lambda call: 500 if bad.encode() in call.body else 200
    batch = many_completed(range(1, 11))

    handle(notification.group(), batch)

    assert alimtalk.tries(batch[2].inbox_id) == 9
    letter = DeadLetter.objects.get()
    assert (letter.offset, letter.error_class) == (batch[2].offset, "CallFailed")
    assert len(alimtalk.effects) == 9
    assert handled_offsets(batch) == [item.offset for item in batch if item is not batch[2]]


def test_a_message_that_the_service_never_manages_does_not_hold_up_its_partition_for_ever(
    alimtalk: Provider,
) -> None:
    alimtalk.answer = lambda call: 500 if b"7001" in call.body else 200
    handler = BatchHandler(notification.group())
    (alone,) = many_completed([1])
    # Alone it cannot be told from a service that is away.
    with pytest.raises(ServiceUnavailable):
        handler.handle([alone], StopFlag())
    # Another partition's call gets through.
    handle(notification.group(), [completed(2)])
    handler.handle([alone], StopFlag())
    assert DeadLetter.objects.get().offset == alone.offset


def test_a_user_whom_the_service_does_not_find_is_no_reason_to_wait(alimtalk: Provider) -> None:
    alimtalk.answer = lambda call: 404 if b"7003" in call.body else 200
    batch = many_completed(range(1, 11))
    handle(notification.group(), batch)
    assert alimtalk.tries(batch[2].inbox_id) == 3
    assert DeadLetter.objects.get().offset == batch[2].offset


@pytest.mark.parametrize("places", [[0], [3, 7], [9]], ids=["first", "two", "last"])
def test_only_what_is_refused_is_buried_and_at_once(places: list[int], alimtalk: Provider) -> None:
    bad = {str(7001 + place).encode() for place in places}
    alimtalk.answer = lambda call: 422 if any(user in call.body for user in bad) else 200
    batch = many_completed(range(1, 11))

    handle(notification.group(), batch)

    assert list(DeadLetter.objects.order_by("offset").values_list("offset", "error_class")) == [
        (batch[place].offset, "CallRefused") for place in places
    ]
    assert len(alimtalk.calls) == 10
    assert len(alimtalk.effects) == 10 - len(places)


def test_a_batch_with_a_refused_call_that_comes_again_buries_it_once(alimtalk: Provider) -> None:
    alimtalk.answer = lambda call: 422 if b"7001" in call.body else 200
    batch = many_completed([1, 2])
    handle(notification.group(), batch)
    handle(notification.group(), batch)
    assert DeadLetter.objects.count() == 1
    assert alimtalk.tries(batch[1].inbox_id) == 1


def test_a_service_that_refuses_everybody_without_end_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "BAD_MESSAGES_IN_A_ROW", 5)

    def refuse(messages: Sequence[Any], stop: StopFlag) -> Outcomes:
        return [CallRefused("no") for _ in messages]

    handler = BatchHandler(group_with(refuse))
    handler.handle(many_completed(range(3)), StopFlag())
    with pytest.raises(PoisonLimitExceeded):
        handler.handle(many_completed(range(3)), StopFlag())
    assert DeadLetter.objects.count() == 5


def test_many_calls_that_fail_in_a_row_pause_instead_of_being_buried() -> None:
    def fail(messages: Sequence[Any], stop: StopFlag) -> Outcomes:
        return [CallFailed("answered 500") for _ in messages]

    with pytest.raises(PoisonLimitExceeded, match="answered 500"):
        handle(group_with(fail), many_completed(range(30)))
    assert DeadLetter.objects.count() == batches.HANDLER_FAILURES_IN_A_ROW


def test_a_fault_of_ours_in_calling_hits_only_the_message_that_brings_it_out() -> None:
    batch = many_completed(range(1, 9))
    called: list[ReceivedMessage] = []

    def call(messages: Sequence[ReceivedMessage], stop: StopFlag) -> Outcomes:
        if batch[5] in messages:
            raise KeyError("a fault")
        called.extend(messages)
        return [None] * len(messages)

    handle(group_with(call), batch)

    assert sorted(item.offset for item in called) == [item.offset for item in batch if item is not batch[5]]
    letter = DeadLetter.objects.get()
    assert (letter.offset, letter.error_class) == (batch[5].offset, "KeyError")


def test_a_group_that_calls_out_without_an_inbox_is_refused() -> None:
    with pytest.raises(ValueError, match="needs the inbox"):
        ConsumerGroup(
            name=NAME, event_types=(ORDER_COMPLETED,), decode=str, call=lambda messages, stop: [None] * len(messages)
        )
