"""A provider that answers 429, or 503 with Retry-After, wants fewer calls: no message is at fault for that."""

import json
import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from uuid_utils.compat import uuid7

from common import http_calls, throttling
from common.http_calls import PARALLEL, Endpoint, HttpCall, endpoint
from common.processes.lifecycle import StopFlag
from common.throttling import CallPostponed, CallThrottled
from devstack import wait_until
from kafka_bridge.client import group_lag
from kafka_bridge.consuming.batch import BatchHandler, BatchPostponed
from kafka_bridge.consuming.consumer import GroupConsumer
from kafka_bridge.models import DeadLetter, ProcessedEvent
from kafka_bridge.registry import ReceivedMessage
from orders.effects import data_platform as data_platform_effect
from orders.effects import notification
from tests.effects.cast import completed, completed_body, many_completed
from tests.support.kafka import committed_offsets, produce
from tests.support.provider import Answer, Call, Provider, Quota
from tests.support.threads import in_another_session

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _no_answer_is_late(settings: Any) -> None:
    """On a busy machine an answer takes as long as it takes; a second try would be counted."""
    settings.HTTP_TIMEOUT_SECONDS = 10.0


@pytest.fixture
def service(provider: Provider) -> Endpoint:
    return endpoint("the service", provider.url, fix_hint="look at SERVICE_URL")


def some_calls(count: int, line: int | None = None) -> list[HttpCall]:
    return [HttpCall(uuid7(), b"{}", ordering_key=line) for _ in range(count)]


def seconds_asked_for(outcome: Exception | None) -> float:
    assert isinstance(outcome, CallThrottled), outcome
    return outcome.seconds


def notified(alimtalk: Provider) -> list[int]:
    """The users that a message reached, in the order in which the messages arrived."""
    return [json.loads(call.body)["userId"] for call in alimtalk.effects.values()]


def handle_all(batch: Sequence[ReceivedMessage]) -> list[int]:
    """Handle a batch as a consumer does, until nothing is left; returns how many were left after each pass."""
    handler, left, passes = BatchHandler(notification.group()), list(batch), list[int]()
    while left:
        try:
            handler.handle(left, StopFlag())
            left = []
        except BatchPostponed as postponed:
            left = postponed.messages
            time.sleep(postponed.seconds)
        passes.append(len(left))
    return passes


@pytest.mark.parametrize(
    ("status", "headers", "seconds"),
    [
        (429, {"Retry-After": "30"}, 30.0),
        (503, {"Retry-After": "30"}, 30.0),
        (429, {"Retry-After": "1000000000"}, throttling.LONGEST_WAIT),
        (429, {"Date": "Sun, 01 Mar 2026 09:00:00 GMT", "Retry-After": "Sun, 01 Mar 2026 09:01:00 GMT"}, 60.0),
        (429, {"Retry-After": "Sun, 01 Mar 2026 09:01:00 KST"}, throttling.DEFAULT_WAIT),
        (503, {"Retry-After": "soon"}, throttling.DEFAULT_WAIT),
        (429, {"Retry-After": "-1"}, throttling.DEFAULT_WAIT),
        (429, {}, throttling.DEFAULT_WAIT),
        (429, {"Retry-After": "0"}, 0.0),
        (429, {"Retry-After": "Sun, 01 Mar 2026 09:01:00 GMT"}, 0.0),
    ],
)
def test_the_provider_says_when_it_takes_calls_again(
    status: int, headers: dict[str, str], seconds: float, provider: Provider, service: Endpoint
) -> None:
    provider.answer = lambda call: (status, headers)
    (outcome,) = service.post_all(some_calls(1), StopFlag())
    assert seconds - 2 <= seconds_asked_for(outcome) <= seconds
    # It is not asked again at once, and until then it gets no other call either.
    assert len(provider.calls) == 1
    if seconds:
        (other,) = service.post_all(some_calls(1), StopFlag())
        assert seconds - 10 <= seconds_asked_for(other) <= seconds
        assert len(provider.calls) == 1


def test_one_pace_for_all_that_call_a_provider_and_one_of_its_own_for_another(provider: Provider) -> None:
    provider.answer = lambda call: (429, {"Retry-After": "30"})
    url = provider.url
    with ThreadPoolExecutor(8) as pool:
        endpoints = list(pool.map(lambda _: endpoint("the service", url, fix_hint="look"), range(50)))
    assert len(set(endpoints)) == 1
    other = endpoint("another service", url, fix_hint="look")
    endpoints[0].post_all(some_calls(1), StopFlag())
    endpoints[1].post_all(some_calls(1), StopFlag())
    assert len(provider.calls) == 1
    provider.answer = lambda call: 200
    assert other.post_all(some_calls(1), StopFlag()) == [None]


def test_a_stop_ends_the_wait_for_a_turn(
    provider: Provider, service: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_calls, "PACED_SECONDS", 60.0)
    provider.answer = lambda call: (429, {"Retry-After": "0"}) if call.number == 1 else 200
    service.post_all(some_calls(1), StopFlag())
    stop = StopFlag()
    with ThreadPoolExecutor(1) as pool:
        # At half a call a second.
        calling = pool.submit(service.post_all, some_calls(30), stop)
        wait_until(lambda: len(provider.calls) == 2, 10, "the pace lets no call begin")
        stop.request()
        outcomes = calling.result(5)
    assert len(provider.calls) <= 3
    assert {str(outcome) for outcome in outcomes if outcome} == {"stopped"}


def test_calls_beyond_the_pace_come_back_in_time_and_are_not_made(provider: Provider, service: Endpoint) -> None:
    provider.answer = lambda call: (429, {"Retry-After": "0"}) if call.number == 1 else 200
    service.post_all(some_calls(1), StopFlag())
    started_at = time.monotonic()
    outcomes = service.post_all(some_calls(30), StopFlag())
    assert time.monotonic() - started_at < 10
    made = outcomes.count(None)
    assert 1 <= made == len(provider.calls) - 1 < 30
    assert {type(outcome) for outcome in outcomes} == {type(None), CallPostponed}


def test_the_pace_is_logged_when_it_falls_and_when_the_provider_is_open_again_and_not_at_every_call(
    provider: Provider, service: Endpoint, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    provider.answer = lambda call: (429, {"Retry-After": "0"}) if call.number % 2 else 200
    for call in some_calls(6):
        service.post_all([call], StopFlag())
    assert [record.getMessage() for record in caplog.records if record.name == "common.http_calls"] == [
        "the service asks to slow down (answered 429): no call for 0 s, then at most 0.5 calls a second",
        "the service takes calls again, at most 2.5 a second",
    ]


def test_the_notified_are_settled_at_once_and_the_others_come_later(alimtalk: Provider) -> None:
    quota = alimtalk.answer = Quota(5)
    batch = many_completed(range(1, 31))
    with pytest.raises(BatchPostponed) as raised:
        BatchHandler(notification.group()).handle(batch, StopFlag())
    assert raised.value.seconds <= 1.0
    done = {item.inbox_id for item in batch} - {item.inbox_id for item in raised.value.messages}
    assert set(ProcessedEvent.objects.values_list("event_id", flat=True)) == done
    assert 5 <= len(done) < 30

    passes = handle_all(batch)
    assert passes == sorted(passes, reverse=True)
    assert sorted(notified(alimtalk)) == list(range(7001, 7031))
    assert len(alimtalk.calls) == 30 + len(quota.throttled_at)
    assert not DeadLetter.objects.exists()


def test_an_overloaded_data_platform_gets_the_time_that_it_asks_for(data_platform: Provider) -> None:
    data_platform.answer = lambda call: (503, {"Retry-After": "1"}) if call.number <= 20 else 200
    batch, handler = many_completed(range(1, 31)), BatchHandler(data_platform_effect.group())
    with pytest.raises(BatchPostponed) as raised:
        handler.handle(batch, StopFlag())
    assert (len(raised.value.messages), 0 < raised.value.seconds <= 1.0) == (30, True)
    assert len(data_platform.calls) <= PARALLEL
    assert not DeadLetter.objects.exists()


def test_a_message_that_cannot_be_read_does_not_wait_for_the_provider(alimtalk: Provider) -> None:
    alimtalk.answer = lambda call: (429, {"Retry-After": "60"})
    poison, other = completed(1, userId=0), completed(2)
    with pytest.raises(BatchPostponed) as raised:
        BatchHandler(notification.group()).handle([poison, other], StopFlag())
    assert raised.value.messages == [other]
    assert DeadLetter.objects.get().offset == poison.offset


def test_the_messages_of_one_user_keep_their_order_while_the_provider_throttles(alimtalk: Provider) -> None:
    alimtalk.answer = Quota(3)
    users = [7 if order_id % 3 else 7000 + order_id for order_id in range(1, 25)]
    batch = [completed(order_id, userId=user) for order_id, user in enumerate(users, 1)]
    handle_all(batch)
    bodies = [json.loads(call.body) for call in alimtalk.effects.values()]
    of_one_user = [body["variables"]["orderId"] for body in bodies if body["userId"] == 7]
    assert of_one_user == sorted(of_one_user)
    assert len(bodies) == len(batch)


def test_a_group_whose_failures_are_only_logged_waits_for_no_provider_that_throttles(
    alimtalk: Provider, settings: Any
) -> None:
    settings.ORDER_EFFECT_POLICIES = {**settings.ORDER_EFFECT_POLICIES, "notification": "log_only"}
    alimtalk.answer = lambda call: (429, {"Retry-After": "60"})
    BatchHandler(notification.group()).handle(many_completed([1, 2]), StopFlag())
    assert ProcessedEvent.objects.count() == 2
    assert not DeadLetter.objects.exists()


def lag() -> int:
    group = notification.group()
    return group_lag(group.group_id, group.topics)


@pytest.fixture
def consuming(topics: str) -> Iterator[Any]:
    """``consuming(batch_size)`` starts a consumer of the notifications in the background."""
    stop, running = StopFlag(), list[Future[None]]()

    def start(batch_size: int | None = None) -> None:
        group = notification.group()
        running.append(in_another_session(lambda: GroupConsumer(group, batch_size=batch_size).run(stop)))

    yield start
    stop.request()
    for consumer in running:
        consumer.result(30)


def pay(order_ids: Sequence[int]) -> None:
    """Orders that are all on one partition."""
    produce("order-completed", [json.dumps(completed_body(order_id)).encode() for order_id in order_ids])


def test_a_partition_waits_longer_than_a_consumer_may_be_busy_and_keeps_its_consumer(
    alimtalk: Provider, consuming: Any, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    settings.KAFKA_CONSUMER_CONFIG = {"session.timeout.ms": 6000, "max.poll.interval.ms": 6000}
    alimtalk.answer = lambda call: (429, {"Retry-After": "9"}) if call.number == 1 else 200
    pay([1, 2])
    consuming(1)
    wait_until(lambda: len(alimtalk.calls) >= 2, 30, "the provider gets no call after its Retry-After")
    wait_until(lambda: lag() == 0, 30, "the partition does not go on")
    assert notified(alimtalk) == [7001, 7002]
    assert sum("partitions assigned" in record.getMessage() for record in caplog.records) == 1
    assert not any("kafka:" in record.getMessage() for record in caplog.records)


def test_a_message_that_is_throttled_alone_holds_up_no_other_and_is_dead_lettered_after_its_hour(
    alimtalk: Provider, consuming: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(call: Call) -> Answer:
        return (429, {"Retry-After": "1"}) if b'"userId":7003' in call.body else 200

    alimtalk.answer = answer
    pay(range(1, 31))
    # Its batch would be full of messages that are done.
    consuming(5)
    others = [7000 + order_id for order_id in range(1, 31) if order_id != 3]
    wait_until(lambda: len(alimtalk.effects) == len(others), 60, "the others do not get through")
    assert sorted(notified(alimtalk)) == others
    assert not DeadLetter.objects.exists()
    # A consumer that dies now leaves the message to the next.
    group = notification.group()
    wait_until(lambda: 2 in committed_offsets(group.group_id, "order-completed").values(), 10, "no offset follows")

    monkeypatch.setattr(throttling, "ALONE_SECONDS", 1.0)
    wait_until(lambda: DeadLetter.objects.exists(), 60, "it is never at fault")
    letter = DeadLetter.objects.get()
    assert (letter.offset, letter.error_class) == (2, "CallRefused")
    assert "AlimTalk answered 429" in letter.error_message
    assert "while other calls got through" in letter.error_message
    wait_until(lambda: lag() == 0, 30, "the offset stays behind")
