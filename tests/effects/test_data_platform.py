"""The data platform has every paid order once: in our table, and under its URL with the very bytes of the event."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import permutations
from typing import Any
from uuid import uuid4

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from common.processes.lifecycle import StopFlag
from kafka_bridge import registry
from kafka_bridge.client import ensure_topics
from kafka_bridge.consuming.batch import BatchHandler
from kafka_bridge.models import DeadLetter
from kafka_bridge.registry import ReceivedMessage
from kafka_bridge.routes import overlay_routes
from orders.effects import data_platform as effect
from orders.models import StoredOrder
from tests.effects.cast import ITEMS, TRACEPARENT, cancelled, cancelled_body, completed, completed_body, headers
from tests.support.kafka import consume_everything, produce
from tests.support.messages import message
from tests.support.provider import Provider
from tests.support.threads import OpenTransaction, in_another_session, wait_until_blocked

pytestmark = pytest.mark.django_db(transaction=True)

PAID = datetime(2026, 3, 1, 9, tzinfo=UTC)
CANCELLED = datetime(2026, 3, 2, 9, tzinfo=UTC)


def handle(*batch: ReceivedMessage) -> None:
    BatchHandler(effect.group()).handle(batch, StopFlag())


def assert_whole(order_id: int) -> None:
    """What is stored of an order that was paid and cancelled."""
    row = StoredOrder.objects.get(order_id=order_id)
    assert (row.user_id, row.items, row.paid_at, row.cancelled_at) == (7000 + order_id, ITEMS, PAID, CANCELLED)
    assert (row.total_amount, row.discount_amount, row.pay_amount, row.user_coupon_id) == (1000, 100, 900, 3)


def test_the_group_is_registered_for_both_events() -> None:
    assert registry.groups()["data-platform"].event_types == ("order.completed.v1", "order.cancelled.v1")


def test_a_paid_order_is_stored() -> None:
    handle(completed(5, userCouponId=None))
    row = StoredOrder.objects.get()
    assert (row.order_id, row.user_id, row.items, row.paid_at, row.cancelled_at) == (5, 7005, ITEMS, PAID, None)
    assert (row.total_amount, row.discount_amount, row.pay_amount, row.user_coupon_id) == (1000, 100, 900, None)


def test_a_cancellation_that_comes_first_is_completed_by_the_payment() -> None:
    handle(cancelled(5))
    row = StoredOrder.objects.get()
    assert (row.user_id, row.paid_at, row.cancelled_at) == (7005, PAID, CANCELLED)
    assert (row.total_amount, row.pay_amount) == (None, None)
    handle(completed(5))
    assert_whole(5)


@pytest.mark.parametrize("together", [True, False], ids=["in one batch", "one by one"])
@pytest.mark.parametrize("order", list(permutations(range(3))), ids=str)
def test_the_events_of_an_order_may_come_in_any_order_and_again(order: Sequence[int], together: bool) -> None:
    # The first once more under another id, as a topic that was copied would bring it.
    events = [completed(5), cancelled(5), completed(5)]
    batches = [[events[place] for place in order]] if together else [[events[place]] for place in order]
    for batch in [*batches, *batches]:
        handle(*batch)
    assert_whole(5)


def test_a_batch_is_one_statement() -> None:
    batch = [event for order_id in range(1, 31) for event in (completed(order_id), cancelled(order_id))]
    with CaptureQueriesContext(connection) as queries:
        handle(*batch)
    assert len([query for query in queries.captured_queries if "orders_storedorder" in query["sql"]]) == 1
    assert StoredOrder.objects.count() == 30
    for order_id in (1, 30):
        assert_whole(order_id)


def test_two_consumers_that_store_the_same_orders_lose_nothing() -> None:
    paid = [completed(order_id) for order_id in range(1, 21)]
    refunded = [cancelled(order_id) for order_id in range(20, 0, -1)]
    with OpenTransaction(lambda: handle(*refunded)) as other:
        mine = in_another_session(lambda: handle(*paid))
        wait_until_blocked(beside=mine)
        other.commit()
        mine.result(10)
    assert StoredOrder.objects.count() == 20
    assert_whole(7)


def test_consumers_that_store_the_same_orders_in_opposite_order_do_not_deadlock() -> None:
    paid = [completed(order_id) for order_id in range(1, 21)]
    refunded = [cancelled(order_id) for order_id in range(20, 0, -1)]
    # A consumer that locks in the order of its batch holds one half here, and waits for the other's.
    with OpenTransaction(lambda: handle(cancelled(10))) as other:
        forth = in_another_session(lambda: handle(*paid))
        back = in_another_session(lambda: handle(*refunded))
        wait_until_blocked(2)
        other.commit()
        forth.result(10)
        back.result(10)
    assert StoredOrder.objects.count() == 20
    assert_whole(20)


def test_the_platform_gets_the_very_bytes_of_each_event(data_platform: Provider) -> None:
    body = json.dumps(completed_body(5) | {"later": "field"}, indent=1).encode()
    event_id = uuid4()
    paid = message(body, topic="order-completed", headers=headers("order.completed.v1", event_id))
    handle(paid, cancelled(6))
    bodies = {call.key: call.body for call in data_platform.calls}
    assert bodies.pop(str(event_id)) == body
    assert [json.loads(other) for other in bodies.values()] == [cancelled_body(6)]
    assert {call.headers["traceparent"] for call in data_platform.calls} == {TRACEPARENT}
    assert not any("authorization" in call.headers for call in data_platform.calls)
    assert StoredOrder.objects.count() == 2


def test_what_the_platform_refuses_is_neither_stored_nor_sent_again(data_platform: Provider) -> None:
    data_platform.answer = lambda call: 422 if b"7002" in call.body else 200
    batch = [completed(1), completed(2), completed(3)]
    handle(*batch)
    handle(*batch)
    assert len(data_platform.calls) == 4
    assert DeadLetter.objects.get().offset == batch[1].offset
    assert sorted(StoredOrder.objects.values_list("order_id", flat=True)) == [1, 3]


@pytest.mark.parametrize(
    "changes",
    [
        {"items": [{**ITEMS[0], "name": "a\0b"}]},
        {"cancelledAt": "0001-01-01T00:00:00+12:00"},
        {"orderId": 2**63},
    ],
    ids=["NUL in a name", "the beginning of the calendar", "an id past 64 bits"],
)
def test_what_cannot_be_stored_is_buried_and_the_others_are_stored(changes: dict[str, Any]) -> None:
    poison = cancelled(2, **changes)
    handle(completed(1), poison, completed(3))
    assert sorted(StoredOrder.objects.values_list("order_id", flat=True)) == [1, 3]
    assert DeadLetter.objects.get().offset == poison.offset


@pytest.mark.parametrize("one_topic", [False, True], ids=["two topics", "one topic"])
def test_orders_are_stored_from_their_topics(one_topic: bool, topics: str, settings: Any) -> None:
    if one_topic:
        overlay = {"order.cancelled.v1": {"topic": "order-completed"}}
        settings.KAFKA_ROUTES = overlay_routes(settings.KAFKA_ROUTES, overlay)
        ensure_topics(settings.KAFKA_ROUTES)
    bodies = {"order.completed.v1": completed_body, "order.cancelled.v1": cancelled_body}
    for event_type, body in bodies.items():
        topic = settings.KAFKA_ROUTES[event_type].topic
        for order_id in range(1, 11):
            of_event = {name: value or b"" for name, value in headers(event_type)}
            produce(topic, [json.dumps(body(order_id)).encode()], key=str(order_id).encode(), headers=of_event)
    consume_everything(effect.group())
    assert StoredOrder.objects.count() == 10
    for order_id in range(1, 11):
        assert_whole(order_id)
