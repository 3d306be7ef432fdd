"""The pages of an order, of the coupon it used and of what was told about it."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from django.test import Client

from coupons.models import Coupon, Notification, UserCoupon
from kafka_bridge.models import Alert
from orders.models import Order, OrderMinute, Product, StoredOrder
from orders.services.cancelling import order_cancel
from orders.services.paying import order_pay
from orders.services.placing import OrderItemInput, order_create
from tests.admin.pages import html_of, rows_of

SCRIPT = "<script>alert(1)</script>"
NOW = datetime(2026, 7, 1, 3, 2, 1, 500_000, tzinfo=UTC)


@pytest.fixture
def user_coupon(make_coupon: Callable[..., Coupon]) -> UserCoupon:
    return UserCoupon.objects.create(coupon=make_coupon(issued=1), user_id=7, issued_at=NOW)


@pytest.mark.django_db(transaction=True)
def test_an_order_leads_to_its_coupon_and_its_events(superuser: Client, user_coupon: UserCoupon) -> None:
    product = Product.objects.create(name="Socks", price=5000)
    placed = order_create(user_id=7, items=[OrderItemInput(product.id, 2)], user_coupon_id=user_coupon.id)
    order_pay(order_id=placed.order_id, user_id=7)
    order_cancel(order_id=placed.order_id, user_id=7)
    order = Order.objects.get()
    page = html_of(superuser.get(f"/admin/orders/order/{order.pk}/change/"))
    assert f"/admin/coupons/usercoupon/{user_coupon.pk}/change/" in page
    for event_id in (order.completed_event_id, order.cancelled_event_id):
        [link] = re.findall(rf'href="(/admin/kafka_bridge/outboxmessage/\?q={event_id})"', page)
        assert [row.event_id for row in rows_of(superuser.get(link))] == [event_id]
    steps = html_of(superuser.get(f"/admin/coupons/usercoupon/{user_coupon.pk}/change/"))
    places = [steps.index(step) for step in ("HELD", "order paid", "RETURNED_TO_USER")]
    assert places == sorted(places)


def test_an_order_in_doubt_shows_until_when_it_is_somebodys(superuser: Client) -> None:
    order = Order.objects.create(
        user_id=7, status="PAYING", total_amount=1, pay_amount=1, expires_at=NOW,
        paying_until=NOW + timedelta(seconds=30), refund_requested_at=NOW + timedelta(seconds=40),
    )  # fmt: skip
    page = html_of(superuser.get(f"/admin/orders/order/{order.pk}/change/"))
    for shown in ("paying until", "2026-07-01T03:02:31.500000Z", "refund requested at", "2026-07-01T03:02:41.500000Z"):
        assert shown in page.replace("Paying", "paying").replace("Refund", "refund")


@pytest.mark.parametrize("as_whom", ["superuser", "viewer"])
def test_markup_in_what_was_told_is_text(as_whom: str, request: pytest.FixtureRequest) -> None:
    client: Client = request.getfixturevalue(as_whom)
    told = Notification.objects.create(
        event_id=uuid4(), user_id=7, template_code=SCRIPT, variables={SCRIPT: [SCRIPT, None]}
    )
    alert = Alert.objects.create(rule=SCRIPT, severity="critical", summary=SCRIPT, runbook=SCRIPT)
    stored = StoredOrder.objects.create(order_id=3, user_id=7, items=[{"name": SCRIPT}], paid_at=NOW)
    for path in (
        "/admin/coupons/notification/", f"/admin/coupons/notification/{told.pk}/change/",
        "/admin/kafka_bridge/alert/", f"/admin/kafka_bridge/alert/{alert.pk}/change/",
        f"/admin/orders/storedorder/{stored.pk}/change/",
    ):  # fmt: skip
        page = html_of(client.get(path))
        assert SCRIPT not in page
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_lists_leave_out_what_is_long(superuser: Client) -> None:
    Notification.objects.create(event_id=uuid4(), user_id=7, template_code="T", variables={"text": "x" * 100_000})
    StoredOrder.objects.create(order_id=3, user_id=7, items=[{"name": "x" * 100_000}], paid_at=NOW)
    for path, column in (("/admin/coupons/notification/", "variables"), ("/admin/orders/storedorder/", "items")):
        response = superuser.get(path)
        (row,) = rows_of(response)
        assert column in row.get_deferred_fields()
        assert len(response.content) < 100_000


def test_alerts_are_narrowed_to_those_that_are_open(superuser: Client) -> None:
    ended = Alert.objects.create(rule="lag", severity="warning", summary="", runbook="", ended_at=NOW)
    still = Alert.objects.create(rule="lag", severity="warning", summary="", runbook="")
    path = "/admin/kafka_bridge/alert/"
    assert rows_of(superuser.get(path)) == [still, ended]
    assert rows_of(superuser.get(path, {"state": "open"})) == [still]
    assert rows_of(superuser.get(path, {"state": "ended"})) == [ended]
    assert rows_of(superuser.get(path, {"state": "\0"})) == [still, ended]


def test_a_minute_has_a_page_of_its_own(superuser: Client) -> None:
    OrderMinute.objects.create(minute=NOW.replace(second=0, microsecond=0), completed=17, amount=1_234_567)
    page = html_of(superuser.get("/admin/orders/orderminute/"))
    [link] = set(re.findall(r'href="(/admin/orders/orderminute/[^"?]+/change/)', page))
    assert "2026-07-01T03:02:00" in html_of(superuser.get(link))


@pytest.mark.parametrize("key", [str(UUID(int=5)), "5"])
def test_what_no_page_is_of_is_not_listed(superuser: Client, key: str) -> None:
    for table in ("kafka_bridge/processedevent", "orders/idempotencykey", "coupons/couponledgerentry"):
        assert superuser.get(f"/admin/{table}/{key}/change/").status_code == 404
