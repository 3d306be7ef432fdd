"""Orders of a story: placed and paid over HTTP."""

from __future__ import annotations

from typing import NamedTuple
from uuid import UUID

from demo.stories.client import Reply
from demo.stories.story import Scene
from demo.stories.topics import is_event
from kafka_bridge.registry import ReceivedMessage
from orders.models import Order, Product

COMPLETED = "order.completed.v1"


class PaidOrder(NamedTuple):
    """An order as the database has it after the payment, the answer to the payment, and the id of its event."""

    order: Order
    reply: Reply
    event_id: UUID


def make_product(name: str = "Keyboard", price: int = 89_000) -> Product:
    """Create a product, or return the one of an earlier run."""
    return Product.objects.get_or_create(name=name, price=price)[0]


def buy(scene: Scene, product: Product, user_id: int, quantity: int = 1) -> PaidOrder:
    """Place an order of one product and pay it. Raises StoryFailed if either is refused."""
    items = [{"productId": product.id, "quantity": quantity}]
    placed = scene.client.post(user_id, "/api/v1/orders", {"items": items})
    scene.expect_status(placed, 201, "POST /api/v1/orders")
    order_id = placed.body["orderId"]
    paid = scene.client.post(user_id, f"/api/v1/orders/{order_id}/pay", {})
    scene.expect_status(paid, 200, f"POST /api/v1/orders/{order_id}/pay")
    order = Order.objects.get(id=order_id)
    scene.expect(order.status == Order.Status.PAID, f"order {order_id} is {order.status}")
    assert order.completed_event_id is not None
    return PaidOrder(order, paid, order.completed_event_id)


def completed_message(scene: Scene, topic: str, paid: PaidOrder) -> ReceivedMessage:
    """Wait for the message of a paid order, whose key must be the order's id."""
    message = scene.topics.message(topic, is_event(paid.event_id), f"the event of order {paid.order.id}")
    scene.expect((message.key or b"").decode() == str(paid.order.id), f"the key of {message} is {message.key!r}")
    return message
