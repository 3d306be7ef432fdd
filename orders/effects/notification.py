"""Effect of a paid order: notify its user."""

from __future__ import annotations

from django.conf import settings

from common.postgres.clock import isoformat_z
from coupons.clients import alimtalk
from coupons.clients.alimtalk import Notice
from kafka_bridge.errors import PoisonMessage
from kafka_bridge.registry import ConsumerGroup, ReceivedMessage

from ..events import OrderCompleted
from ..messages import ORDER_COMPLETED, read_order_task

# After a crash up to this many notices are sent again.
_LARGEST_BATCH = 100


def group() -> ConsumerGroup:
    """Build the consumer group of this effect."""
    return ConsumerGroup(
        name="notification",
        event_types=(ORDER_COMPLETED,),
        decode=read_notice,
        call=alimtalk.send,
        handle=alimtalk.keep,
        describe_call=alimtalk.describe,
        inbox=True,
        largest_batch=_LARGEST_BATCH,
        log_only=settings.ORDER_EFFECT_POLICIES["notification"] == "log_only",
    )


def read_notice(message: ReceivedMessage) -> Notice:
    """Decode the event in ``message`` into the notice for its user. Raises PoisonMessage."""
    event_id, order, _, traceparent = read_order_task(message)
    # The routes may put payments and cancellations on one topic, and a message there may lack its type.
    if not isinstance(order, OrderCompleted):
        raise PoisonMessage(f"not a valid {ORDER_COMPLETED}")
    return Notice(
        event_id=event_id,
        user_id=order.user_id,
        template="order.completed",
        variables={
            "orderId": order.order_id,
            "totalAmount": order.total_amount,
            "discountAmount": order.discount_amount,
            "payAmount": order.pay_amount,
            "paidAt": isoformat_z(order.paid_at),
        },
        traceparent=traceparent,
    )
