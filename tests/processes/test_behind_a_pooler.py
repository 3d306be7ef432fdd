"""Everything but the relay works behind PgBouncer in transaction mode, with nothing set for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from django.contrib.auth.models import User

from coupons.models import Coupon
from demo.processes import wait_until_ready
from devstack.ports import free_port
from orders.models import Product
from tests.processes.conftest import STOCK
from tests.processes.test_commands_that_cannot_start import RELAY, assert_one_line
from tests.support.burst import Burst
from tests.support.calls import call, is_refused
from tests.support.factories import CouponFactory
from tests.support.ledger import assert_guarantees_hold
from tests.support.pooler import pgbouncer
from tests.support.service import Service, environment, run_command
from tests.support.shop import Shoppers
from tests.support.threads import lock

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def pooled(transactional_db: None, tmp_path: Path) -> Iterator[str]:
    """The DATABASE_URL of a pooler."""
    with pgbouncer(tmp_path) as pooler:
        yield pooler.url


@pytest.fixture
def port(pooled: str, topics: str, tmp_path: Path) -> Iterator[int]:
    """The port of a web process behind the pooler, beside an issuer there and a relay that is not."""
    number = free_port()
    behind = Service(tmp_path, environment(DATABASE_URL=pooled, PORT=str(number), HOST="127.0.0.1"))
    beside = Service(tmp_path, environment())
    try:
        web = behind.start("web")
        behind.start("issuer", "--batch-size", "50")
        beside.start("relay")
        wait_until_ready(web, number)
        yield number
    finally:
        behind.end()
        beside.end()


def test_a_sale_behind_a_pooler_keeps_every_guarantee(port: int) -> None:
    coupons = [CouponFactory.create(total_quantity=STOCK, admission=name) for name in ("queue", "gate", "reserve")]
    crowd = Burst(port, coupons[:1], requests=600, users=400)
    crowd.start()
    assert_guarantees_hold(crowd, coupons[:1])
    for user, coupon in enumerate(coupons[1:], start=1):
        body = {"couponType": coupon.coupon_type}
        assert call(port, "POST", "/api/v1/coupons/issue-async", user=user, body=body, key="one").status == 202


def test_orders_are_placed_and_paid_behind_a_pooler(port: int) -> None:
    products = Product.objects.bulk_create([Product(name="Mug", price=1000)])
    shoppers = Shoppers(port, products, orders=60, clients=20)
    shoppers.start()
    assert len(shoppers.finish()) == 60


def test_limits_hold_behind_a_pooler(port: int) -> None:
    coupon: Coupon = CouponFactory.create(admission="reserve")
    body = {"couponType": coupon.coupon_type}
    with lock("SELECT FROM coupons_coupon WHERE id = %s FOR UPDATE", coupon.id):
        assert is_refused(call(port, "POST", "/api/v1/coupons/issue-async", user=1, body=body))
    assert call(port, "POST", "/api/v1/coupons/issue-async", user=1, body=body).status == 202


def test_sessions_and_lists_work_behind_a_pooler(port: int) -> None:
    CouponFactory.create_batch(3)
    User.objects.create_user("carol", password="a-long-password")
    login = call(port, "POST", "/api/v1/auth/token", body={"username": "carol", "password": "a-long-password"})
    assert login.status == 200
    assert len(call(port, "GET", "/api/v1/coupons", user=1).body["results"]) == 3
    assert call(port, "GET", "/readyz").body["postgresql"] == "ok"


def test_views_are_rebuilt_behind_a_pooler(pooled: str) -> None:
    assert run_command("rebuild_views", env=environment(DATABASE_URL=pooled)).returncode == 0


def test_a_relay_behind_a_pooler_is_refused_at_the_start(pooled: str) -> None:
    refused = run_command(*RELAY, "--until-idle", env=environment(DATABASE_URL=pooled))
    assert_one_line(refused, "DATABASE_URL", "pooler")
