"""Effect of a paid order: store a copy for the data platform and forward the event to an external platform."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
from django.conf import settings
from django.db import connection

from common.http_calls import HttpCall, endpoint
from common.postgres import arrays
from common.postgres.clock import isoformat_z
from common.processes.lifecycle import StopFlag
from kafka_bridge.registry import ConsumerGroup, ReceivedMessage

from ..events import OrderCancelled, OrderEvent
from ..messages import ORDER_CANCELLED, ORDER_COMPLETED, read_order_task

# After a crash up to this many events are sent again.
_LARGEST_BATCH = 100

# Stored values stay; an event only fills columns that are still null. Sorted by id: two consumers that store the same
# orders in different sequences would deadlock.
_STORE = """
    INSERT INTO orders_storedorder AS stored
        (order_id, user_id, items, total_amount, discount_amount, pay_amount, user_coupon_id, paid_at, cancelled_at)
    SELECT order_id, user_id, items::jsonb, total_amount, discount_amount, pay_amount, user_coupon_id, paid_at,
           cancelled_at
    FROM unnest(%s::bigint[], %s::bigint[], %s::text[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[],
                %s::timestamptz[], %s::timestamptz[])
         AS row (order_id, user_id, items, total_amount, discount_amount, pay_amount, user_coupon_id, paid_at,
                 cancelled_at)
    ORDER BY order_id
    ON CONFLICT (order_id) DO UPDATE SET
        total_amount = coalesce(stored.total_amount, excluded.total_amount),
        discount_amount = coalesce(stored.discount_amount, excluded.discount_amount),
        pay_amount = coalesce(stored.pay_amount, excluded.pay_amount),
        user_coupon_id = coalesce(stored.user_coupon_id, excluded.user_coupon_id),
        cancelled_at = coalesce(stored.cancelled_at, excluded.cancelled_at)
"""


class OrderRow(NamedTuple):
    """The columns of one order; None: no event has carried the value yet."""

    order_id: int
    user_id: int
    items: str
    total_amount: int | None
    discount_amount: int | None
    pay_amount: int | None
    user_coupon_id: int | None
    paid_at: str
    cancelled_at: str | None

    def merged_with(self, later: OrderRow) -> OrderRow:
        return OrderRow._make(new if old is None else old for old, new in zip(self, later, strict=True))


class DecodedOrder(NamedTuple):
    """An order event in the two forms it is delivered in: the HTTP call and the row."""

    call: HttpCall
    row: OrderRow


def group() -> ConsumerGroup:
    """Build the consumer group of this effect."""
    return ConsumerGroup(
        name="data-platform",
        event_types=(ORDER_COMPLETED, ORDER_CANCELLED),
        decode=read_order,
        call=send_orders,
        handle=store_orders,
        describe_call=describe_call,
        inbox=True,
        largest_batch=_LARGEST_BATCH,
        log_only=settings.ORDER_EFFECT_POLICIES["data-platform"] == "log_only",
    )


def read_order(message: ReceivedMessage) -> DecodedOrder:
    """Decode the event in ``message``. Raises PoisonMessage."""
    task = read_order_task(message)
    return DecodedOrder(HttpCall(task.event_id, task.body, task.traceparent), _row(task.event))


def send_orders(orders: Sequence[DecodedOrder], stop: StopFlag) -> Sequence[Exception | None]:
    """Post each event unchanged to DATA_PLATFORM_URL, if set; results as in ``Endpoint.post_all``."""
    if not settings.DATA_PLATFORM_URL:
        return [None] * len(orders)
    platform = endpoint("the data platform", settings.DATA_PLATFORM_URL, fix_hint="check DATA_PLATFORM_URL")
    return platform.post_all([item.call for item in orders], stop)


def describe_call(order: DecodedOrder) -> str:
    """Say in one line what ``send_orders`` sends."""
    if not settings.DATA_PLATFORM_URL:
        return f"order {order.row.order_id} as a stored row"
    return f"order {order.row.order_id} to the data platform, key {order.call.idempotency_key}"


def store_orders(orders: Sequence[DecodedOrder]) -> None:
    """Store the events in one statement, within the caller's transaction."""
    rows: dict[int, OrderRow] = {}
    for _, row in orders:
        # ON CONFLICT DO UPDATE may touch a row only once: merge two events of one order into one row.
        rows[row.order_id] = row if row.order_id not in rows else rows[row.order_id].merged_with(row)
    if not rows:
        return
    ids, users, items, totals, discounts, pays, coupons, paid, cancelled = zip(*rows.values(), strict=True)
    with connection.cursor() as cursor:
        cursor.execute(
            _STORE,
            [
                arrays.numbers(ids), arrays.numbers(users), arrays.texts(items), arrays.numbers(totals),
                arrays.numbers(discounts), arrays.numbers(pays), arrays.numbers(coupons), arrays.texts(paid),
                arrays.texts(cancelled),
            ],
        )  # fmt: skip


def _row(event: OrderEvent) -> OrderRow:
    items, paid_at = msgspec.json.encode(event.items).decode(), isoformat_z(event.paid_at)
    if isinstance(event, OrderCancelled):
        cancelled_at = isoformat_z(event.cancelled_at)
        return OrderRow(event.order_id, event.user_id, items, None, None, None, None, paid_at, cancelled_at)
    amounts = event.total_amount, event.discount_amount, event.pay_amount
    return OrderRow(event.order_id, event.user_id, items, *amounts, event.user_coupon_id, paid_at, None)
