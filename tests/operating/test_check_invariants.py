"""``check_invariants`` finds each thing that must never happen, when it is made to happen."""

from collections.abc import Callable
from io import StringIO

import msgspec
import pytest
from django.core.management import CommandError, call_command
from django.db import connection, transaction
from django_redis import get_redis_connection

from common.processes.lifecycle import StopFlag
from common.processes.outages import ServiceUnavailable
from coupons import invariants
from coupons.consumer_groups import ISSUE
from coupons.issuance.accept import request_accept
from coupons.models import Coupon, IssueRequest, RolloutChange, UserCoupon
from devstack import wait_until
from kafka_bridge.consuming import inbox
from kafka_bridge.consuming.batch import BatchHandler
from kafka_bridge.consuming.dead_letters import write_dead_letters
from kafka_bridge.errors import PoisonMessage
from kafka_bridge.models import OutboxMessage, ProcessedEvent
from kafka_bridge.registry import Rejected
from orders import invariants as order_invariants
from orders.models import Order, Product
from orders.services.cancelling import order_cancel
from orders.services.paying import order_pay
from orders.services.placing import OrderItemInput, order_create
from tests.support.kafka import produce
from tests.support.messages import requests
from tests.support.orders import completed

pytestmark = pytest.mark.django_db(transaction=True)

MakeCoupon = Callable[..., Coupon]


BUYERS = [11, 12, 13, 14]
EFFECTS = ("notification", "data-platform", "ranking", "monitoring")


@pytest.fixture(autouse=True)
def _an_event_that_went_well(make_coupon: MakeCoupon, redis_flushed: None) -> None:
    """Two of three users got a coupon; four others placed orders with theirs, and each of those went another way."""
    coupon = make_coupon(total_quantity=2)
    BatchHandler(ISSUE).handle(requests(coupon, [1, 2, 3]), StopFlag())
    for_orders = make_coupon(total_quantity=10)
    BatchHandler(ISSUE).handle(requests(for_orders, BUYERS), StopFlag())
    tea = Product.objects.create(name="tea", price=1000)
    coupons = dict(UserCoupon.objects.filter(coupon=for_orders).values_list("user_id", "id"))
    orders = {
        user_id: order_create(
            user_id=user_id, items=[OrderItemInput(tea.id, 1)], user_coupon_id=coupons[user_id]
        ).order_id
        for user_id in BUYERS
    }
    pending, paid, unpaid, refunded = BUYERS
    assert pending in orders
    order_pay(order_id=orders[paid], user_id=paid)
    order_cancel(order_id=orders[unpaid], user_id=unpaid)
    order_pay(order_id=orders[refunded], user_id=refunded)
    order_cancel(order_id=orders[refunded], user_id=refunded)


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
    assert report().count("ok  ") == 19


DROP_STOCK_CHECK = "ALTER TABLE coupons_coupon DROP CONSTRAINT coupon_stock"
DROP_UNIQUE = "ALTER TABLE coupons_usercoupon DROP CONSTRAINT one_coupon_per_user"
SPOILED: dict[str, tuple[str, ...]] = {
    "I2 issued and reserved are within the stock": ("UPDATE coupons_coupon SET total_quantity = 1",),
    "I2 the counter of issued coupons is right": ("UPDATE coupons_coupon SET issued = 1",),
    "I2 the counter of reserved coupons is right": ("UPDATE coupons_coupon SET total_quantity = 3, reserved = 1",),
    "I2 reservations end with their requests": (
        "INSERT INTO coupons_reservation (request_id, coupon_id, user_id, admission)"
        " SELECT request_id, coupon_id, user_id, 'gate' FROM coupons_issuerequest WHERE user_id = 3",
    ),
    "I3 one coupon per user": ("UPDATE coupons_usercoupon SET user_id = 1",),
    "I1 every SUCCESS has its coupon": ("DELETE FROM coupons_usercoupon WHERE user_id = 1",),
    "I1 every coupon has one SUCCESS": ("DELETE FROM coupons_issuerequest WHERE user_id = 1",),
    "I1 a request has one result event": (
        "INSERT INTO kafka_bridge_outboxmessage (event_id, event_type, topic, key, payload, traceparent, shard)"
        " SELECT gen_random_uuid(), event_type, topic, key, payload, traceparent, shard"
        " FROM kafka_bridge_outboxmessage WHERE event_type = 'coupon.issue.succeeded.v1' LIMIT 1",
    ),
    "I3 the ledger determines the state of every coupon": (
        "UPDATE coupons_usercoupon SET status = 'USED' WHERE user_id = 1",
    ),
    "I3 a coupon is used by one order at a time": (
        "INSERT INTO coupons_couponledgerentry (user_coupon_id, order_id, step, cause)"
        " SELECT user_coupon_id, 999, 'HELD', '' FROM coupons_couponledgerentry ORDER BY id LIMIT 1",
    ),
    "I8 no request ends SOLD_OUT while there is stock": (
        "UPDATE coupons_issuerequest SET remaining = 1 WHERE reason = 'SOLD_OUT'",
    ),
    "I3 a pending, paying or paid order has its coupon": (
        "UPDATE orders_order SET user_id = 999 WHERE status = 'PENDING'",
    ),
    "I3 a cancelled or expired order has no coupon": ("UPDATE orders_order SET status = 'EXPIRED' WHERE user_id = 11",),
    "I4 the cancellation is published after the payment": (
        "UPDATE kafka_bridge_outboxmessage SET id = -id WHERE event_type = 'order.cancelled.v1'",
    ),
    "I7 every paid order has an event": ("UPDATE orders_order SET completed_event_id = NULL WHERE user_id = 12",),
    "I7 no event of an order is published twice": (
        "INSERT INTO kafka_bridge_outboxmessage (event_id, event_type, topic, key, payload, traceparent, shard)"
        " SELECT gen_random_uuid(), event_type, topic, key, payload, traceparent, shard"
        " FROM kafka_bridge_outboxmessage WHERE event_type = 'order.completed.v1' LIMIT 1",
    ),
}


@pytest.fixture
def _unguarded() -> object:
    """Takes the constraints away that would not let the data be spoiled, and puts them back."""
    spoil(DROP_STOCK_CHECK, DROP_UNIQUE)
    yield
    spoil(
        "TRUNCATE coupons_coupon, coupons_usercoupon, coupons_reservation CASCADE",
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


def test_an_answer_in_redis_that_is_not_that_of_postgresql_is_a_violation() -> None:
    request = IssueRequest.objects.get(user_id=1)
    assert invariants.wrong_views() == []
    IssueRequest.objects.filter(user_id=1).update(status="FAILED", reason="ERROR")
    assert invariants.wrong_views() == [f"request {request.request_id}: SUCCESS in Redis, FAILED in PostgreSQL"]
    assert "FAIL I6 cached statuses agree with PostgreSQL" in report()


def test_what_redis_has_forgotten_is_no_violation() -> None:
    get_redis_connection("default").flushdb()
    IssueRequest.objects.filter(user_id=1).update(status="FAILED", reason="ERROR")
    assert invariants.wrong_views() == []


def test_a_request_that_nobody_answers_is_a_violation_once_everybody_is_idle(make_coupon: MakeCoupon) -> None:
    accepted = request_accept(id_or_type=make_coupon().id, user_id=9, caller_id=9)
    spoil("UPDATE kafka_bridge_outboxmessage SET created_at = created_at - interval '1 hour'")
    assert invariants.overdue_requests(lag=lambda: 0) == []  # the relay has not had it

    spoil("UPDATE kafka_bridge_outboxmessage SET published_at = now()")
    assert invariants.overdue_requests(lag=lambda: 1) == []  # the issuer has not had it
    assert invariants.overdue_requests(lag=lambda: 0) == [str(accepted.request_id)]


@pytest.mark.usefixtures("redis_flushed")
def test_a_request_that_waits_for_the_worker_is_no_violation_and_one_that_it_cannot_find_is(
    make_coupon: MakeCoupon,
) -> None:
    RolloutChange.objects.create(flag="issue-worker", percent=100)
    accepted = request_accept(id_or_type=make_coupon(admission="gate").id, user_id=9, caller_id=9)
    spoil("UPDATE kafka_bridge_outboxmessage SET created_at = created_at - interval '1 hour', published_at = now()")
    assert invariants.overdue_requests(lag=lambda: 0) == []

    spoil("DELETE FROM coupons_reservation")
    assert invariants.overdue_requests(lag=lambda: 0) == [str(accepted.request_id)]


def test_a_young_request_is_no_violation(make_coupon: MakeCoupon) -> None:
    request_accept(id_or_type=make_coupon().id, user_id=9, caller_id=9)
    spoil("UPDATE kafka_bridge_outboxmessage SET published_at = now()")
    assert invariants.overdue_requests(lag=lambda: 0) == []


@pytest.fixture
def an_hour_later() -> None:
    """Every order is old, and every event published."""
    spoil(
        "UPDATE orders_order SET paid_at = paid_at - interval '1 hour'",
        "UPDATE orders_order SET cancelled_at = cancelled_at - interval '1 hour'",
        "UPDATE kafka_bridge_outboxmessage SET published_at = now()",
    )


def has_leaders() -> bool:
    try:
        order_invariants.missed_effects()
    except ServiceUnavailable:
        return False
    return True


def nothing_to_consume(group_id: str, topics: list[str]) -> int:
    return 0


@pytest.mark.usefixtures("an_hour_later")
def test_a_paid_order_that_misses_an_effect_is_a_violation_until_it_is_handled_or_a_dead_letter() -> None:
    events = ("order.completed.v1", "order.cancelled.v1")
    assert len(order_invariants.missed_effects(nothing_to_consume)) == 2 * 4 + 3
    told = [(row.event_type, row.event_id) for row in OutboxMessage.objects.filter(event_type__in=events)]
    for group in EFFECTS:
        inbox.claim(group, [event_id for _, event_id in told])
    assert order_invariants.missed_effects(nothing_to_consume) == []

    order = Order.objects.get(status="PAID")
    assert order.completed_event_id is not None
    ProcessedEvent.objects.filter(event_id=order.completed_event_id, consumer_group="ranking").delete()
    missed = f"order {order.id}: event {order.completed_event_id} never reached ranking"
    assert order_invariants.missed_effects(nothing_to_consume) == [missed]
    with transaction.atomic():
        event = msgspec.structs.replace(completed(order), headers=(("ce_id", str(order.completed_event_id).encode()),))
        write_dead_letters("ranking", "order-ranking-group", [Rejected(event, PoisonMessage("spoiled"))], publish=False)
    assert order_invariants.missed_effects(nothing_to_consume) == []


@pytest.mark.usefixtures("an_hour_later", "topics")
def test_kafka_is_asked_whether_the_effects_have_nothing_left_to_do() -> None:
    wait_until(has_leaders, 20, "the topics have no leaders")
    assert "FAIL I5 I7 every paid order reaches every effect\n     order " in report()
    produce("order-completed", [b"{}"])
    assert {line.rpartition(" ")[2] for line in order_invariants.missed_effects()} == {
        "data-platform",
        "ranking",
        "monitoring",
    }
    produce("order-cancelled", [b"{}"])
    assert order_invariants.missed_effects() == []


@pytest.mark.usefixtures("an_hour_later")
def test_a_cancelled_order_need_not_reach_its_notification() -> None:
    order = Order.objects.get(status="CANCELLED", cancelled_event_id__isnull=False)
    missed = [
        line for line in order_invariants.missed_effects(nothing_to_consume) if str(order.cancelled_event_id) in line
    ]
    assert [line.rpartition(" ")[2] for line in missed] == ["data-platform", "ranking", "monitoring"]


@pytest.mark.usefixtures("an_hour_later")
def test_effects_are_not_judged_before_relay_and_groups_are_done() -> None:
    asked: dict[str, list[str]] = {}

    def lag(group_id: str, topics: list[str]) -> int:
        asked.setdefault(group_id, []).extend(topics)
        return 0 if "monitoring" in group_id else 1

    missed = order_invariants.missed_effects(lag)
    assert missed
    assert all(line.endswith("monitoring") for line in missed)
    assert asked == {
        "order-notification-group": ["order-completed"],
        **{f"order-{group}-group": ["order-completed", "order-cancelled"] for group in EFFECTS[1:]},
    }
    every = order_invariants.missed_effects(nothing_to_consume)
    spoil("UPDATE kafka_bridge_outboxmessage SET published_at = NULL WHERE event_type = 'order.cancelled.v1'")
    published = order_invariants.missed_effects(nothing_to_consume)
    assert 0 < len(published) < len(every)
    spoil("UPDATE kafka_bridge_outboxmessage SET published_at = NULL")
    assert order_invariants.missed_effects(nothing_to_consume) == []


def test_a_young_order_may_still_be_on_its_way() -> None:
    spoil("UPDATE kafka_bridge_outboxmessage SET published_at = now()")
    assert order_invariants.missed_effects(nothing_to_consume) == []
