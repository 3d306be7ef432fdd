"""A row with a time that Python has no date for, as raw SQL can write it, takes no page and no list with it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from importlib import import_module
from typing import Any

import pytest
from django.apps import apps
from django.contrib.auth.models import User
from django.db import IntegrityError, connection, transaction
from django.test import Client

from coupons.coupon_cache import coupon_cache
from coupons.models import Coupon, UserCoupon
from orders.models import Product, StoredOrder
from tests.support.factories import CouponFactory
from tests.support.orders import make_paid_order

NOW = datetime(2026, 7, 1, tzinfo=UTC)
LATE = ["10000-01-01 00:00:00+00", "9999-12-31 23:59:59-05", "9999-12-31 23:59:59+00", "infinity"]
EARLY = ["0001-01-01 00:00:00+00", "0044-03-15 00:00:00+00 BC", "-infinity"]

Token = Callable[..., dict[str, str]]


@pytest.fixture
def unchecked(db: None) -> None:
    """Coupons before the table refused such times."""
    execute("ALTER TABLE coupons_coupon DROP CONSTRAINT IF EXISTS coupon_times")


def execute(statement: str, *values: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement, values)


def answers(token: Token, *paths: str) -> dict[str, int]:
    browser, client = Client(), Client()
    browser.force_login(User.objects.create_superuser("olga"))
    return {
        path: (client.get(path, headers=token(7)) if path.startswith("/api/") else browser.get(path)).status_code
        for path in paths
    }


@pytest.mark.parametrize(
    ("opens_at", "closes_at"), [*(("now", late) for late in LATE), *((e, "infinity") for e in EARLY)]
)
def test_a_coupon_takes_no_list_with_it(opens_at: str, closes_at: str, unchecked: None, token: Token) -> None:
    bad, good = CouponFactory.create(), CouponFactory.create()
    execute("UPDATE coupons_coupon SET opens_at = %s, closes_at = %s WHERE id = %s", opens_at, closes_at, bad.id)
    admin = "/admin/coupons/coupon/"
    paths = ("/", "/api/v1/coupons", f"/api/v1/coupons/{bad.id}", admin, f"{admin}{bad.id}/change/")
    assert set(answers(token, *paths).values()) == {200}
    listed = Client().get("/api/v1/coupons", headers=token(7)).json()["results"]
    assert {coupon["couponId"] for coupon in listed} == {bad.id, good.id}
    # It is as open as it was: the nearest time decides alike.
    entry = coupon_cache.get(bad.id)
    assert entry is not None
    assert entry.window.refusal(coupon_cache.clock.now()) is None


@pytest.mark.parametrize("time", [*LATE, *EARLY])
def test_a_users_coupon_takes_no_list_with_it(time: str, db: None, token: Token) -> None:
    mine = UserCoupon.objects.create(coupon=CouponFactory.create(issued=1), user_id=7, issued_at=NOW)
    execute("UPDATE coupons_usercoupon SET issued_at = %s, expires_at = %s, used_at = %s", time, time, time)
    admin = "/admin/coupons/usercoupon/"
    paths = ("/api/v1/users/7/coupons", admin, f"{admin}{mine.id}/change/")
    assert set(answers(token, *paths).values()) == {200}


@pytest.mark.parametrize("time", [*LATE, *EARLY])
def test_an_order_takes_no_list_with_it(time: str, db: None, token: Token, redis_flushed: None) -> None:
    order = make_paid_order({Product.objects.create(name="Socks", price=1000): 2})
    StoredOrder.objects.create(order_id=order.pk, user_id=7, items=[], paid_at=NOW)
    execute("UPDATE orders_order SET paid_at = %s, expires_at = %s, cancelled_at = %s", time, time, time)
    execute("UPDATE orders_storedorder SET paid_at = %s, cancelled_at = %s", time, time)
    admin, stored = "/admin/orders/order/", "/admin/orders/storedorder/"
    paths = (
        f"/api/v1/orders/{order.pk}", "/api/v1/rankings/best-sellers?days=3",
        admin, f"{admin}{order.pk}/change/", stored, f"{stored}{order.pk}/change/",
    )  # fmt: skip
    assert set(answers(token, *paths).values()) == {200}


def test_arrays_and_raw_queries_read_the_nearest_time_too(db: None) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT 'infinity'::timestamptz, ARRAY['-infinity', '2026-07-01 00:00:00+00']::timestamptz[],"
            " NULL::timestamptz"
        )
        [(late, times, nothing)] = cursor.fetchall()
    assert (late.year, [time.year for time in times], nothing) == (9998, [2, 2026], None)
    assert times[1] == NOW


@pytest.mark.parametrize("field", ["opens_at", "closes_at"])
@pytest.mark.parametrize("time", ["1969-12-31 23:59:59.999999+00", "9999-01-01 00:00:00+00", "infinity"])
def test_the_table_refuses_such_a_time_whatever_writes_it(field: str, time: str, db: None) -> None:
    coupon = CouponFactory.create()
    both = "opens_at = %s, closes_at = NULL" if field == "opens_at" else "closes_at = %s, opens_at = '1970-01-01'"
    with pytest.raises(IntegrityError, match=r"coupon_times|coupon_window"), transaction.atomic():
        execute(f"UPDATE coupons_coupon SET {both} WHERE id = {coupon.id}", time)


def test_the_migration_moves_what_is_there_to_the_nearest_time(
    unchecked: None, capsys: pytest.CaptureFixture[str]
) -> None:
    late, early, good, open_end = (CouponFactory.create() for _ in range(4))
    execute("UPDATE coupons_coupon SET opens_at = 'infinity', closes_at = 'infinity' WHERE id = %s", late.id)
    execute("UPDATE coupons_coupon SET opens_at = '0044-03-15 BC', closes_at = '1969-12-31' WHERE id = %s", early.id)
    execute("UPDATE coupons_coupon SET opens_at = '-infinity', closes_at = NULL WHERE id = %s", open_end.id)
    migration = import_module("coupons.migrations.0011_coupon_times")
    with connection.schema_editor(atomic=False) as editor:
        migration.clamp(apps, editor)
        editor.add_constraint(
            Coupon,
            next(one for one in Coupon._meta.constraints if one.name == "coupon_times"),  # the table's own
        )
    first, last = datetime(1970, 1, 1, tzinfo=UTC), datetime(9998, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)
    windows = {coupon.id: (coupon.opens_at, coupon.closes_at) for coupon in Coupon.objects.all()}
    assert windows == {
        late.id: (last, last),
        early.id: (first, first),
        open_end.id: (first, None),
        good.id: (good.opens_at, None),
    }
    printed = capsys.readouterr().out
    assert all(coupon.coupon_type in printed for coupon in (late, early, open_end))
    assert good.coupon_type not in printed
