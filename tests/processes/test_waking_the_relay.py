"""Web, site and issuer wake the relay after their commits: it polls once a minute here."""

from __future__ import annotations

import pytest

from coupons.models import IssueRequest
from devstack import wait_until
from orders.models import Product
from tests.processes.conftest import MOMENT_SECONDS, Web
from tests.support.calls import ask, call
from tests.support.factories import CouponFactory
from tests.support.kafka import read_topic
from tests.support.resting_relay import resting_relay
from tests.support.service import Service

pytestmark = pytest.mark.django_db(transaction=True)

SOON_SECONDS = 20.0


def test_the_processes_that_write_events_wake_a_resting_relay(web: Web, service: Service) -> None:
    coupon = CouponFactory.create()
    product = Product.objects.create(name="Mug", price=1000)
    with resting_relay():
        assert ask(web.port, coupon.coupon_type, user=1).status == 202
        read_topic("coupon-issue-request", 1, timeout=SOON_SECONDS)

        order = {"items": [{"productId": product.id, "quantity": 1}]}
        placed = call(web.port, "POST", "/api/v1/orders", user=1, body=order).body
        assert call(web.port, "POST", f"/api/v1/orders/{placed['orderId']}/pay", user=1, body={}).status == 200
        read_topic("order-completed", 1, timeout=SOON_SECONDS)

        service.start("issuer")
        wait_until(IssueRequest.objects.exists, MOMENT_SECONDS, "the issuer does not decide", 0.01)
        read_topic("coupon-issue-response", 1, timeout=SOON_SECONDS)
