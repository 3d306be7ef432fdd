"""Users are told once that their order is paid, whatever AlimTalk does meanwhile."""

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from django.db import OperationalError, connection
from django.test.utils import CaptureQueriesContext

from common.processes.lifecycle import StopFlag
from common.trace_context import read_traceparent
from coupons.clients.alimtalk import Notice
from coupons.models import Notification
from devstack import wait_until
from kafka_bridge import metrics, registry
from kafka_bridge.client import group_lag
from kafka_bridge.consuming.batch import BatchHandler, BatchInterrupted
from kafka_bridge.consuming.consumer import GroupConsumer
from kafka_bridge.models import DeadLetter, ProcessedEvent
from kafka_bridge.registry import ConsumerGroup, ReceivedMessage
from orders.effects import notification
from tests.effects.cast import PAID_AT, TRACEPARENT, completed, completed_body, many_completed
from tests.support.kafka import consume_everything, produce
from tests.support.messages import message
from tests.support.provider import HANG, Answer, Call, Provider
from tests.support.threads import in_another_session

pytestmark = pytest.mark.django_db(transaction=True)


def handle(batch: Sequence[ReceivedMessage], group: ConsumerGroup | None = None) -> None:
    BatchHandler(group or notification.group()).handle(batch, StopFlag())


def told_users(alimtalk: Provider) -> list[int]:
    """Whom the effects reached, one entry per effect."""
    return sorted(json.loads(call.body)["userId"] for call in alimtalk.effects.values())


def test_the_group_is_registered() -> None:
    assert registry.groups()["notification"].event_types == ("order.completed.v1",)


def test_a_user_is_told_by_alimtalk(alimtalk: Provider) -> None:
    paid = completed(5)
    handle([paid])
    (call,) = alimtalk.calls
    assert json.loads(call.body) == {
        "templateCode": "ORDER_COMPLETED",
        "userId": 7005,
        "variables": {
            "orderId": 5, "totalAmount": 1000, "discountAmount": 100, "payAmount": 900, "paidAt": PAID_AT,
        },
    }  # fmt: skip
    assert call.headers["authorization"] == "Bearer the-key"
    assert call.headers["idempotency-key"] == str(paid.event_id)
    assert call.headers["traceparent"] == TRACEPARENT
    assert not Notification.objects.exists()


def test_the_settings_name_the_template(alimtalk: Provider, settings: Any) -> None:
    settings.ALIMTALK_TEMPLATES = {**settings.ALIMTALK_TEMPLATES, "order.completed": "PAID_2"}
    handle([completed(5)])
    assert json.loads(alimtalk.calls[0].body)["templateCode"] == "PAID_2"


def test_without_alimtalk_the_message_can_be_read_in_a_table() -> None:
    batch = many_completed(range(1, 51))
    with CaptureQueriesContext(connection) as queries:
        handle(batch)
    handle(batch)
    inserts = [query for query in queries.captured_queries if "INSERT INTO coupons_notification" in query["sql"]]
    assert len(inserts) == 1
    assert Notification.objects.count() == 50
    row = Notification.objects.get(event_id=batch[4].inbox_id)
    assert (row.user_id, row.template_code, row.variables["orderId"]) == (7005, "ORDER_COMPLETED", 5)


def test_every_fifth_call_fails_and_every_twentieth_hangs_and_everybody_is_told_once(
    alimtalk: Provider, settings: Any
) -> None:
    settings.HTTP_TIMEOUT_SECONDS = 0.3

    def answer(call: Call) -> Answer:
        if call.number % 20 == 0:
            return HANG
        return 500 if call.number % 5 == 0 else 200

    alimtalk.answer = answer
    batch = many_completed(range(1, 251))
    for start in range(0, 250, 100):
        handle(batch[start : start + 100])

    assert told_users(alimtalk) == list(range(7001, 7251))
    assert set(alimtalk.effects) == {str(item.event_id) for item in batch}
    assert not DeadLetter.objects.exists()
    assert ProcessedEvent.objects.count() == 250


def test_no_try_changes_the_key_of_an_order(alimtalk: Provider) -> None:
    alimtalk.answer = lambda call: 500 if call.number % 3 else 200
    handle(many_completed(range(1, 21)))
    keys: dict[int, set[str]] = {}
    for call in alimtalk.calls:
        keys.setdefault(json.loads(call.body)["userId"], set()).add(call.key)
    assert len(alimtalk.calls) > 20
    assert {user: len(of_user) for user, of_user in keys.items()} == dict.fromkeys(range(7001, 7021), 1)


def test_a_consumer_killed_between_call_and_commit_sends_again_under_the_same_key(alimtalk: Provider) -> None:
    def die(notices: Sequence[Notice]) -> None:
        raise OperationalError("killed")

    batch = many_completed([1, 2])
    with pytest.raises(OperationalError):
        handle(batch, replace(notification.group(), handle=die))
    handle(batch)
    handle(batch)
    assert Counter(call.key for call in alimtalk.calls) == {str(item.event_id): 2 for item in batch}
    assert told_users(alimtalk) == [7001, 7002]


def test_a_message_without_headers_is_told_once(alimtalk: Provider) -> None:
    bare = message(completed_body(1), topic="order-completed")
    handle([bare])
    handle([bare])
    (call,) = alimtalk.calls
    assert call.key == str(bare.inbox_id)
    # Where a message brings no trace, one begins.
    assert read_traceparent(call.headers["traceparent"])


@pytest.mark.parametrize(
    "changes",
    [{"userId": 0}, {"payAmount": "900"}, {"paidAt": "2026-02-30T09:00:00"}, {"paidAt": "9999-12-31T23:59:59-12:00"}],
    ids=["user zero", "a text for an amount", "a day that is none", "the end of the calendar"],
)
def test_what_cannot_be_read_is_buried_and_the_others_are_told(changes: dict[str, Any], alimtalk: Provider) -> None:
    poison = completed(2, **changes)
    handle([completed(1), poison, completed(3)])
    assert told_users(alimtalk) == [7001, 7003]
    assert DeadLetter.objects.get().offset == poison.offset


@pytest.mark.parametrize("passes", [1, 3])
def test_a_stop_while_alimtalk_hangs_leaves_the_batch_to_the_next_consumer(
    passes: int, alimtalk: Provider, settings: Any
) -> None:
    settings.CONSUMER_MAX_ATTEMPTS = passes
    settings.HTTP_TIMEOUT_SECONDS = 1.0
    alimtalk.answer = lambda call: HANG
    stop, batch = StopFlag(), many_completed(range(1, 51))
    handling = in_another_session(lambda: BatchHandler(notification.group()).handle(batch, stop))
    wait_until(lambda: bool(alimtalk.calls), 10, "no call is made")
    stop.request()
    stopped_at = time.monotonic()
    with pytest.raises(BatchInterrupted):
        handling.result(10)
    assert time.monotonic() - stopped_at < 2.5
    assert not DeadLetter.objects.exists()

    alimtalk.answer = lambda call: 200
    handle(batch)
    assert told_users(alimtalk) == list(range(7001, 7051))


def test_what_got_through_before_a_stop_is_not_sent_again(alimtalk: Provider) -> None:
    stop, batch = StopFlag(), many_completed([1, 2])

    def answer(call: Call) -> Answer:
        if b"7001" in call.body:
            return 200
        wait_until(lambda: bool(alimtalk.effects), 5, "the other does not get through")
        stop.request()
        return 503

    alimtalk.answer = answer
    with pytest.raises(BatchInterrupted):
        BatchHandler(notification.group()).handle(batch, stop)
    alimtalk.answer = lambda call: 200
    handle(batch)
    assert alimtalk.tries(batch[0].event_id) == 1
    assert told_users(alimtalk) == [7001, 7002]


def test_batches_of_several_partitions_at_once_tell_everybody_once(alimtalk: Provider) -> None:
    alimtalk.answer = lambda call: 500 if call.number % 7 == 0 else 200
    batches = [many_completed(range(start, start + 60)) for start in (1, 61, 121)]
    running = [in_another_session(partial(handle, batch)) for batch in batches]
    for future in running:
        future.result(30)
    assert told_users(alimtalk) == list(range(7001, 7181))
    assert not DeadLetter.objects.exists()


@pytest.mark.usefixtures("topics")
def test_while_alimtalk_is_away_the_partitions_wait_and_go_on_when_it_is_back(
    closed_provider: Provider, settings: Any
) -> None:
    settings.ALIMTALK_URL = closed_provider.url
    group = notification.group()
    for order_id in range(1, 31):
        produce("order-completed", [json.dumps(completed_body(order_id)).encode()], key=str(order_id).encode())
    stop = StopFlag()
    running = in_another_session(lambda: GroupConsumer(group).run(stop))
    try:
        wait_until(lambda: len(paused_partitions()) == 3, 30, "not every partition waits")
        assert group_lag(group.group_id, group.topics) == 30
        closed_provider.up()
        wait_until(lambda: group_lag(group.group_id, group.topics) == 0, 30, "the consumer does not go on")
    finally:
        stop.request()
        running.result(30)
    assert told_users(closed_provider) == list(range(7001, 7031))
    assert not DeadLetter.objects.exists()
    assert not paused_partitions()


def paused_partitions() -> set[str]:
    (gauge,) = metrics.PAUSED.collect()
    return {
        sample.labels["partition"]
        for sample in gauge.samples
        if sample.labels["group"] == "notification" and sample.value
    }


@pytest.mark.usefixtures("topics")
def test_a_consumer_that_dies_before_its_offset_is_committed_tells_nobody_twice(
    alimtalk: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    produce("order-completed", [json.dumps(completed_body(order_id)).encode() for order_id in range(1, 21)])
    group = notification.group()
    with monkeypatch.context() as patched:
        patched.setattr(GroupConsumer, "_commit", lambda *args: None)
        consume_everything(group)
    consume_everything(group)
    assert group_lag(group.group_id, group.topics) == 0
    assert len(alimtalk.calls) == 20
    assert told_users(alimtalk) == list(range(7001, 7021))
