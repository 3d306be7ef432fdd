"""The page of an order: its states, its coupon, its events, and what became of them in every effect."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from django.conf import settings
from django.db.models import F
from django.test import Client
from pytest_django import Settings

from common.bigint import MAX_BIGINT
from coupons.models import UserCoupon
from kafka_bridge.consuming.retrying_partitions import WAITING
from kafka_bridge.lag import HeldPartition
from kafka_bridge.models import DeadLetter, GroupPause, HeldMessage, OutboxMessage, ProcessedEvent
from kafka_bridge.operating.alerts import open_alert
from kafka_bridge.operating.operator_holds import hold_messages
from kafka_bridge.partitioner import partition_of
from kafka_bridge.registry import prefixed
from orders.models import Order, Product
from orders.services.cancelling import order_cancel
from orders.services.paying import order_pay
from orders.services.placing import OrderItemInput, order_create
from tests.support.factories import CouponFactory

from .conftest import facts, have_a_process, publish_all, states

pytestmark = pytest.mark.django_db(transaction=True)

EFFECTS = ["data-platform", "monitoring", "notification", "ranking"]


@pytest.fixture
def shared(settings: Settings) -> None:
    """All effects but the ranking have one id."""
    sharing = [name for name in EFFECTS if name != "ranking"]
    settings.KAFKA_GROUPS = {**settings.KAFKA_GROUPS, **dict.fromkeys(sharing, "order-consumer-group")}


@pytest.fixture
def order(transactional_db: None) -> Order:
    """A placed order of user 7 with a coupon."""
    coupon = CouponFactory.create(total_quantity=5, issued=1)
    held = UserCoupon.objects.create(coupon=coupon, user_id=7, issued_at=datetime.now(UTC))
    product = Product.objects.create(name="Socks", price=1000)
    created = order_create(user_id=7, items=[OrderItemInput(product_id=product.id, quantity=2)], user_coupon_id=held.id)
    return Order.objects.get(pk=created.order_id)


def way(client: Client, order_id: int, status: int = 200) -> Any:
    response = client.get(f"/ops/orders/{order_id}")
    assert response.status_code == status, response.content
    return response


def cause(client: Client, order: Order) -> str | None:
    problem = way(client, order.id).context["trace"].problem
    return None if problem is None else str(problem.cause)


def test_an_event_behind_a_hold_names_the_hold_and_leads_to_its_page(viewer: Client, order: Order) -> None:
    order_pay(order_id=order.id, user_id=7)
    hold_messages(topic="order-completed", key=str(order.id).encode(), actor="olga", reason="wrong price")
    publish_all()
    row = OutboxMessage.objects.get(topic="order-completed")
    HeldMessage.objects.create(message_id=row.id, shard=row.shard, topic=row.topic, reason="key")
    page = way(viewer, order.id)
    assert page.context["trace"].problem.cause == "held-by-operator"
    assert f"An operator holds the key {order.id} of topic order-completed: wrong price." in page.content.decode()
    assert 'href="/ops/holds"' in page.content.decode()


def test_a_paid_and_cancelled_order_shows_every_step(viewer: Client, order: Order) -> None:
    assert states(way(viewer, order.id))["Paid"] == "waiting"
    order_pay(order_id=order.id, user_id=7)
    order_cancel(order_id=order.id, user_id=7)
    publish_all()
    page = way(viewer, order.id)
    known, how = facts(page), states(page)
    assert (known["Placed"]["total"], known["Placed"]["discount"]) == ("2,000 won", "200 won")
    assert [name for name in how if name.startswith("Coupon ")] == [
        "Coupon HELD",
        "Coupon USED",
        "Coupon RETURNED_TO_USER",
    ]
    assert known["Paid"]["key at the provider"] == str(order.id)
    assert how["Cancelled"] == "done"
    assert how["Event order.completed.v1"] == how["Event order.cancelled.v1"] == "done"
    assert "Effect ranking" in how
    assert cause(viewer, order) == "group-down"


def test_each_effect_has_a_state_of_its_own(viewer: Client, order: Order) -> None:
    order_pay(order_id=order.id, user_id=7)
    event_id = Order.objects.get().completed_event_id
    assert event_id is not None
    assert cause(viewer, order) == "relay-down"
    publish_all()
    for group in EFFECTS[:3]:
        ProcessedEvent.objects.create(consumer_group=group, event_id=event_id)
    page = way(viewer, order.id)
    assert [states(page)[f"Effect {group}"] for group in EFFECTS] == ["done", "done", "done", "waiting"]
    assert page.context["trace"].problem.group == "ranking"
    assert "consume_coupons --group ranking" in page.content.decode()

    letter = DeadLetter.objects.create(
        consumer_group="ranking", topic="order-completed", partition=0, offset=1, message_timestamp=0,
        event_type="order.completed.v1", event_id=event_id, headers=b"[]", error_class="PoisonMessage",
    )  # fmt: skip
    page = way(viewer, order.id)
    assert states(page)["Effect ranking"] == "failed"
    assert page.context["trace"].problem.cause == "dead-letter"
    assert f"/admin/kafka_bridge/deadletter/{letter.id}/change/" in page.content.decode()

    DeadLetter.objects.all().delete()
    ProcessedEvent.objects.create(consumer_group="ranking", event_id=event_id)
    assert cause(viewer, order) is None
    OutboxMessage.objects.all().delete()
    page = way(viewer, order.id)
    assert "deleted after its retention" in page.content.decode()
    assert [states(page)[f"Effect {group}"] for group in EFFECTS] == ["done"] * 4


def test_what_the_sweep_should_have_done_is_named(viewer: Client, order: Order) -> None:
    late = timedelta(minutes=5)
    Order.objects.update(
        expires_at=F("expires_at") - timedelta(hours=2), created_at=F("created_at") - timedelta(hours=2)
    )
    assert cause(viewer, order) == "sweep-down"
    assert "python manage.py expire_orders --every 10" in way(viewer, order.id).content.decode()
    have_a_process("orders")
    assert cause(viewer, order) == "expiry-late"
    Order.objects.update(status="PAYING", paying_until=datetime.now(UTC) + late)
    assert cause(viewer, order) is None
    Order.objects.update(paying_until=datetime.now(UTC) - late)
    assert cause(viewer, order) == "payment-in-doubt"
    Order.objects.update(
        status="PAID", paying_until=None, paid_at=datetime.now(UTC), refund_requested_at=datetime.now(UTC) - late
    )
    assert cause(viewer, order) == "refund-in-doubt"


@pytest.mark.parametrize("order_id", [0, 1, MAX_BIGINT, MAX_BIGINT + 1, 10**40])
def test_an_unknown_order_is_a_page(viewer: Client, order_id: int) -> None:
    assert f"Order {order_id} is unknown" in way(viewer, order_id, 404).content.decode()


def test_the_search_for_a_number_leads_to_the_order_too(viewer: Client, order: Order) -> None:
    page = viewer.get("/ops/requests", {"q": str(order.id)})
    assert f'href="/ops/orders/{order.id}"' in page.content.decode()
    assert f'href="/ops/orders/{order.id}"' not in viewer.get("/ops/requests", {"user": str(order.id)}).content.decode()


@pytest.mark.usefixtures("shared")
def test_an_effect_that_waits_for_another_of_its_id_says_for_which(viewer: Client, order: Order) -> None:
    order_pay(order_id=order.id, user_id=7)
    event_id = Order.objects.get().completed_event_id
    assert event_id is not None
    publish_all()
    for group in ("notification", "ranking"):
        ProcessedEvent.objects.create(consumer_group=group, event_id=event_id)
    partition = partition_of(str(order.id).encode(), settings.KAFKA_ROUTES["order.completed.v1"].partitions)
    names = ["data-platform", "monitoring", "notification"]
    held = [
        HeldPartition(group=name, topic=prefixed("order-completed"), partition=partition, state="retrying")
        for name in names
    ]
    have_a_process(groups=names, partitions=msgspec.to_builtins(held))
    open_alert(WAITING, "data-platform: nothing gets through", subject="order-consumer-group")
    assert cause(viewer, order) == "retrying"
    assert "again for 0 s: data-platform: nothing gets through" in page_of(viewer, order)

    GroupPause.objects.create(consumer_group="notification", reason="wrong terms", actor="olga")
    assert cause(viewer, order) == "paused"
    assert "control_group notification resume" in page_of(viewer, order)


def page_of(client: Client, order: Order) -> str:
    return str(way(client, order.id).content.decode())
