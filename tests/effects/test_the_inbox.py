"""The inbox: an event that comes again has its effect once, and only because of the inbox."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from django.db import OperationalError, connection

from common.processes.lifecycle import StopFlag
from kafka_bridge.consuming.batch import BatchHandler
from kafka_bridge.models import DeadLetter, ProcessedEvent
from kafka_bridge.registry import ConsumerGroup, ReceivedMessage
from orders.messages import ORDER_COMPLETED
from orders.models import OrderMinute
from tests.effects.cast import completed, completed_body, headers, many_completed
from tests.support.messages import message
from tests.support.threads import OpenTransaction, in_another_session, wait_until_blocked

pytestmark = pytest.mark.django_db(transaction=True)

MINUTE = datetime(2026, 3, 1, 9, tzinfo=UTC)
COUNT = """
    INSERT INTO orders_orderminute AS counted (minute, completed, cancelled, amount) VALUES (%s, %s, 0, 0)
    ON CONFLICT (minute) DO UPDATE SET completed = counted.completed + excluded.completed
"""


def count(messages: Sequence[ReceivedMessage]) -> None:
    """An effect that adds up: what comes twice is counted twice."""
    with connection.cursor() as cursor:
        cursor.execute(COUNT, [MINUTE, len(messages)])


def counted() -> int:
    return sum(OrderMinute.objects.values_list("completed", flat=True))


def group_with(handle: Callable[[Sequence[Any]], None] = count, **options: Any) -> ConsumerGroup:
    return ConsumerGroup(
        name=options.pop("name", "monitoring"),
        event_types=(ORDER_COMPLETED,),
        decode=lambda received: received,
        handle=handle,
        **{"inbox": True, **options},
    )


def handle(group: ConsumerGroup, batch: Sequence[ReceivedMessage]) -> None:
    BatchHandler(group).handle(batch, StopFlag())


def test_a_batch_that_comes_again_has_its_effect_once() -> None:
    batch = many_completed(range(1, 6))
    handle(group_with(), batch)
    handle(group_with(), batch)
    assert counted() == 5
    assert ProcessedEvent.objects.filter(consumer_group="monitoring").count() == 5


def test_without_the_inbox_it_would_have_it_twice() -> None:
    batch = many_completed(range(1, 6))
    handle(group_with(inbox=False), batch)
    handle(group_with(inbox=False), batch)
    assert counted() == 10


def test_of_a_batch_that_was_handled_in_part_only_the_rest_has_its_effect() -> None:
    batch = many_completed(range(1, 6))
    handle(group_with(), batch[1:3])
    handle(group_with(), batch)
    assert counted() == 5


def test_an_event_that_is_twice_in_one_batch_has_its_effect_once() -> None:
    event_id = UUID(int=9)
    copies = [
        message(completed_body(1), topic="order-completed", headers=headers(ORDER_COMPLETED, event_id))
        for _ in range(3)
    ]
    handle(group_with(), copies)
    assert counted() == 1


def test_messages_without_an_event_id_are_known_by_their_place() -> None:
    first, second = (message(completed_body(1), topic="order-completed") for _ in range(2))
    handle(group_with(), [first, second])
    handle(group_with(), [first, second])
    assert counted() == 2


def test_every_group_has_an_inbox_of_its_own() -> None:
    batch = [completed(1)]
    handle(group_with(), batch)
    handle(group_with(name="ranking"), batch)
    assert counted() == 2


@pytest.mark.parametrize("order", [1, -1], ids=["in the same order", "in opposite order"])
def test_two_consumers_at_once_share_the_effect(order: int) -> None:
    batch = many_completed(range(1, 21))
    with OpenTransaction(lambda: handle(group_with(), batch)) as other:
        mine = in_another_session(lambda: handle(group_with(), batch[::order]))
        wait_until_blocked(beside=mine)
        other.commit()
        mine.result(10)
    assert counted() == 20


def test_two_consumers_at_once_without_the_inbox_would_double_it() -> None:
    batch = many_completed(range(1, 21))
    with OpenTransaction(lambda: handle(group_with(inbox=False), batch)) as other:
        mine = in_another_session(lambda: handle(group_with(inbox=False), batch))
        wait_until_blocked(beside=mine)
        other.commit()
        mine.result(10)
    assert counted() == 40


def test_consumers_with_the_same_events_in_opposite_order_do_not_deadlock() -> None:
    batch = many_completed(range(1, 21))
    # A consumer that locks in the order of its batch holds one half here, and waits for the other's.
    with OpenTransaction(lambda: handle(group_with(), batch[10:11])) as other:
        forth = in_another_session(lambda: handle(group_with(), batch))
        back = in_another_session(lambda: handle(group_with(), batch[::-1]))
        wait_until_blocked(2)
        other.commit()
        forth.result(10)
        back.result(10)
    assert counted() == 20


def test_a_consumer_that_dies_in_mid_batch_leaves_the_effect_to_the_next() -> None:
    batch = many_completed(range(1, 21))
    with OpenTransaction(lambda: handle(group_with(), batch)) as dying:
        mine = in_another_session(lambda: handle(group_with(), batch))
        wait_until_blocked()
        dying.rollback()
        mine.result(10)
    assert counted() == 20


def test_an_effect_that_is_rolled_back_is_not_known() -> None:
    def fail(messages: Sequence[ReceivedMessage]) -> None:
        count(messages)
        raise OperationalError("the server is away")

    batch = many_completed([1, 2])
    with pytest.raises(OperationalError):
        handle(group_with(fail), batch)
    assert ProcessedEvent.objects.count() == 0
    handle(group_with(), batch)
    assert counted() == 2


def test_innocents_beside_a_culprit_have_their_effect_once() -> None:
    batch = many_completed(range(1, 9))

    def fail_for_the_fifth(messages: Sequence[ReceivedMessage]) -> None:
        count(messages)
        if batch[4] in messages:
            raise ValueError("cannot be")

    for _ in range(2):
        handle(group_with(fail_for_the_fifth), batch)
    assert counted() == 7
    assert DeadLetter.objects.get().offset == batch[4].offset
