"""``check_invariants`` finds each thing that must never happen, when it is made to happen."""

from collections.abc import Callable
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.db import connection

from coupons import invariants
from coupons.handlers import ISSUE
from coupons.models import Coupon
from coupons.services.accepting import request_accept
from kafka_bridge.batch import BatchHandler
from kafka_bridge.lifecycle import StopFlag
from tests.support.messages import requests

pytestmark = pytest.mark.django_db(transaction=True)

MakeCoupon = Callable[..., Coupon]


@pytest.fixture(autouse=True)
def _an_event_that_went_well(make_coupon: MakeCoupon) -> None:
    coupon = make_coupon(total_quantity=2)
    BatchHandler(ISSUE).handle(requests(coupon, [1, 2, 3]), StopFlag())


def report() -> str:
    out = StringIO()
    try:
        call_command("check_invariants", stdout=out)
    except CommandError as error:
        return f"{out.getvalue()}{error}"
    return out.getvalue()


def spoil(*statements: str) -> None:
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


def test_after_an_event_that_went_well_everything_holds() -> None:
    assert "FAIL" not in report()
    assert report().count("ok  ") == 7


DROP_STOCK_CHECK = "ALTER TABLE coupons_coupon DROP CONSTRAINT coupon_stock"
DROP_UNIQUE = "ALTER TABLE coupons_usercoupon DROP CONSTRAINT one_coupon_per_user"
SPOILED: dict[str, tuple[str, ...]] = {
    "I2 issued and reserved are within the stock": ("UPDATE coupons_coupon SET total_quantity = 1",),
    "I2 the counter of issued coupons is right": ("UPDATE coupons_coupon SET issued = 1",),
    "I3 one coupon per user": ("UPDATE coupons_usercoupon SET user_id = 1",),
    "I1 every SUCCESS has its coupon": ("DELETE FROM coupons_usercoupon WHERE user_id = 1",),
    "I1 every coupon has one SUCCESS": ("DELETE FROM coupons_issuerequest WHERE user_id = 1",),
    "I1 a request has one result event": (
        "INSERT INTO kafka_bridge_outboxmessage (event_id, event_type, topic, key, payload, traceparent, shard)"
        " SELECT gen_random_uuid(), event_type, topic, key, payload, traceparent, shard"
        " FROM kafka_bridge_outboxmessage LIMIT 1",
    ),
}


@pytest.fixture
def _unguarded() -> object:
    """Takes the constraints away that would not let the data be spoiled, and puts them back."""
    spoil(DROP_STOCK_CHECK, DROP_UNIQUE)
    yield
    spoil(
        "TRUNCATE coupons_coupon, coupons_usercoupon",
        "ALTER TABLE coupons_coupon ADD CONSTRAINT coupon_stock"
        " CHECK (issued >= 0 AND reserved >= 0 AND total_quantity >= issued + reserved)",
        "ALTER TABLE coupons_usercoupon ADD CONSTRAINT one_coupon_per_user UNIQUE (user_id, coupon_id)",
    )


@pytest.mark.usefixtures("_unguarded")
@pytest.mark.parametrize("name", SPOILED)
def test_each_violation_is_found_and_named(name: str) -> None:
    spoil(*SPOILED[name])
    assert f"FAIL {name}\n     " in report()
    assert "invariants do not hold" in report()


def test_a_request_that_nobody_answers_is_a_violation_once_everybody_is_idle(make_coupon: MakeCoupon) -> None:
    accepted = request_accept(id_or_type=make_coupon().id, user_id=9, caller_id=9)
    spoil("UPDATE kafka_bridge_outboxmessage SET created_at = created_at - interval '1 hour'")
    assert invariants.overdue_requests(lag=lambda: 0) == []  # the relay has not had it

    spoil("UPDATE kafka_bridge_outboxmessage SET published_at = now()")
    assert invariants.overdue_requests(lag=lambda: 1) == []  # the issuer has not had it
    assert invariants.overdue_requests(lag=lambda: 0) == [str(accepted.request_id)]


def test_a_young_request_is_no_violation(make_coupon: MakeCoupon) -> None:
    request_accept(id_or_type=make_coupon().id, user_id=9, caller_id=9)
    spoil("UPDATE kafka_bridge_outboxmessage SET published_at = now()")
    assert invariants.overdue_requests(lag=lambda: 0) == []
