"""Bad data of every kind: how each gets in, and what shows that it was dealt with."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import jwt
from django.conf import settings
from django.db import connection
from django_redis import get_redis_connection

from coupons.admission.gate.store import GateStore
from coupons.redis_queue import queue
from fuzz.raw_producer import RawProducer
from kafka_bridge.models import Alert, DeadLetter, OutboxMessage
from kafka_bridge.registry import prefixed
from orders.effects.monitoring import MANY_ORDERS
from orders.models import Order, Product
from orders.ranking.days import last_days
from tests.processes.running_shop import EFFECTS, Shop
from tests.support.factories import CouponFactory
from tests.support.kafka import read_to_end
from tests.support.messages import request_body
from tests.support.service import environment, run_command

Shows = Callable[[], object]


@dataclass(frozen=True)
class Bad:
    """``put`` brings the datum in and returns what becomes true once it shows; dead letters: of whose groups."""

    put: Callable[[Shop], Shows]
    dead_letters: tuple[str, ...] = ()


def send(topic: str, key: bytes, value: bytes | None, headers: Sequence[tuple[bytes, bytes | None]] = ()) -> None:
    producer = RawProducer({"bootstrap.servers": settings.KAFKA_BOOTSTRAP_SERVERS, "partitioner": "murmur2_random"})
    assert producer.produce(prefixed(topic), value, key, headers)
    producer.close()


def dead_letters_of(value: bytes, groups: int) -> Shows:
    return lambda: DeadLetter.objects.filter(payload=value).count() == groups


def request_that(value: bytes = b"", headers: Sequence[tuple[bytes, bytes | None]] = ()) -> Callable[[Shop], Shows]:
    """A request on the partition of the first coupon."""

    def put(shop: Shop) -> Shows:
        coupon = shop.coupons[0]
        body = value or json.dumps(request_body(coupon, 99_999)).encode()
        send("coupon-issue-request", coupon.coupon_type.encode(), body, headers)
        return dead_letters_of(body, 1)

    return put


def order_event(**changes: Any) -> bytes:
    event = {
        "orderId": 10**12,
        "userId": 1,
        "items": [{"productId": 10**12, "name": "x", "quantity": 1, "unitPrice": 1}],
        "totalAmount": 1,
        "discountAmount": 0,
        "payAmount": 1,
        "userCouponId": None,
        "paidAt": datetime.now(UTC).isoformat(),
    }
    return json.dumps(event | changes).encode()


def order_event_that(
    groups: int, headers: Sequence[tuple[bytes, bytes | None]] = (), **changes: Any
) -> Callable[[Shop], Shows]:
    """An event of a paid order, of this minute, that so many groups must dead-letter."""

    def put(shop: Shop) -> Shows:
        value = order_event(**changes)
        send("order-completed", b"1", value, headers)
        return dead_letters_of(value, groups)

    return put


def garbage_on_the_order_topic(shop: Shop) -> Shows:
    send("order-completed", b"1", b"[" * 100_000)
    return dead_letters_of(b"[" * 100_000, len(EFFECTS))


def cached_status(shop: Shop) -> Shows:
    known = shop.answers[0]
    get_redis_connection("default").set(f"status:{known.request_id}", b"\xff{")
    path = f"/api/v1/issue-requests/{known.request_id}"
    return lambda: shop.read(path, known.ask.user_id)["status"] == "SUCCESS"


def redis_key(name: Callable[[Shop], str]) -> Callable[[Shop], Shows]:
    """A key of Redis that is a text now; it shows when it is none any more."""

    def put(shop: Shop) -> Shows:
        redis = get_redis_connection("default")
        redis.delete(name(shop))
        redis.set(name(shop), b"\xff")
        return lambda: redis.type(name(shop)) != b"string"

    return put


def ranking_key(shop: Shop) -> Shows:
    key = f"ranking:quantities:{last_days(1)[0]}"
    get_redis_connection("default").delete(key)
    get_redis_connection("default").set(key, b"\xff")

    def is_right_again() -> bool:
        ranking = shop.read("/api/v1/rankings/best-sellers?days=2&limit=5", 1)["results"]
        return {row["productId"]: row["quantity"] for row in ranking} == shop.sold

    return is_right_again


def coupon_row(**times: str) -> Callable[[Shop], Shows]:
    """A coupon with a time that Python has no value for; it shows when the lists have it and all others."""

    def put(shop: Shop) -> Shows:
        coupon = CouponFactory.create()
        with connection.cursor() as cursor:
            for column, value in times.items():
                cursor.execute(f"UPDATE coupons_coupon SET {column} = %s WHERE id = %s", [value, coupon.pk])

        def is_listed() -> bool:
            listed = {one["couponId"] for one in shop.read("/api/v1/coupons", 1)["results"]}
            return {coupon.pk, *(one.pk for one in shop.coupons)} <= listed

        return is_listed

    return put


def product_with_an_odd_name(shop: Shop) -> Shows:
    name = "\u202e\x01 =HYPERLINK(1)\u3000" + "\U0001f468\u200d\U0001f469" * 60
    shop.products.append(Product.objects.create(name=name, price=10_000))

    def is_sold() -> bool:
        return shop.sold[shop.products[-1].pk] > 0

    return is_sold


def outbox_row_with_headers_of_garbage(shop: Shop) -> Shows:
    value = b"\xff of a row"
    OutboxMessage.objects.create(
        event_id=uuid4(), event_type="", topic="order-completed.DLT", shard=0, key=b"1", payload=value, headers=b"\xff{"
    )

    def is_published() -> bool:
        return b"\xff{" in [header_of(message) for message in read_to_end("order-completed.DLT")]

    def header_of(message: Any) -> bytes | None:
        return dict(message.headers() or []).get("x-unreadable-headers")

    return is_published


def alert_with_odd_content(shop: Shop) -> Shows:
    alert = Alert.objects.create(
        rule=MANY_ORDERS.name, severity="nonsense", summary="\x01\u202e" + "x" * 100_000, runbook="javascript:alert(1)"
    )
    # Ended by the monitoring, whose figures have been ordinary all the time.
    return lambda: Alert.objects.get(pk=alert.pk).ended_at is not None


def overdue_order_that_cannot_expire(shop: Shop) -> Shows:
    past = datetime.now(UTC) - timedelta(hours=1)
    usual = {"user_id": 1, "total_amount": 1, "pay_amount": 1, "expires_at": past}
    bad = Order.objects.create(**usual, user_coupon_id=10**12)
    good = Order.objects.create(**usual)

    def shows() -> bool:
        return (
            Order.objects.get(pk=good.pk).status == "EXPIRED"
            and f"order {bad.pk} cannot expire" in shop.service.processes["orders"].log_path.read_text()
        )

    return shows


def tokens_with_odd_claims(shop: Shop) -> Shows:
    expires = int(time.time()) + 3600
    odd = [{"user_id": value} for value in ("x", 2**63, -1, True, [1], {"a": 1}, "9" * 5000, "\ud83d\ude00")]
    odd += [{"user_id": 1, "scope": {"a": 1}}, {"user_id": 1, "exp": "tomorrow"}, {"user_id": 1, "nbf": "x"}]
    tokens = [
        f"Bearer {jwt.encode({'exp': expires, **claims}, settings.SECRET_KEY, algorithm='HS256')}" for claims in odd
    ]
    return lambda: shop.statuses("/api/v1/coupons", tokens) == [401] * len(odd)


def setting_out_of_range(shop: Shop) -> Shows:
    run = run_command("expire_orders", env=environment(METRICS_PORT="70000"))
    return lambda: run.returncode == 1 and "METRICS_PORT" in run.stderr and "Traceback" not in run.stderr


NO_UTF_8 = [(b"\xff", b"1")]
DATA = {
    "a request with a header name that is not UTF-8": Bad(request_that(headers=NO_UTF_8), ("issue",)),
    "a request with header values of garbage": Bad(
        request_that(headers=[(b"ce_type", b"\xff"), (b"ce_id", b"\x00"), (b"traceparent", None)]), ("issue",)
    ),
    "a request of garbage": Bad(request_that(b"\xff{"), ("issue",)),
    "an order with a header name that is not UTF-8": Bad(order_event_that(4, NO_UTF_8), EFFECTS),
    "an order of garbage": Bad(garbage_on_the_order_topic, EFFECTS),
    "an order of more won than can be added up": Bad(order_event_that(4, payAmount=2**63 - 1), EFFECTS),
    "an order paid at the end of the calendar": Bad(order_event_that(4, paidAt="9999-12-31T23:59:59-05:00"), EFFECTS),
    "a cached status": Bad(cached_status),
    "the holders of a gate": Bad(redis_key(lambda shop: GateStore(shop.gate.pk).keys.holders)),
    "the open requests of a gate": Bad(redis_key(lambda shop: GateStore(shop.gate.pk).keys.pending)),
    "the Redis queue": Bad(redis_key(lambda shop: queue.QUEUE)),
    "the quantities of the ranking": Bad(ranking_key),
    "a coupon that closes after the calendar": Bad(coupon_row(closes_at="9999-12-31 23:59:59-05")),
    "a coupon that opens before the calendar": Bad(coupon_row(opens_at="0001-01-01 00:00:00+09")),
    "a product with an odd name": Bad(product_with_an_odd_name),
    # It reaches the dead-letter topic, where it is a message of nobody's.
    "an outbox row with headers of garbage": Bad(outbox_row_with_headers_of_garbage, ("foreign",)),
    "an alert with odd content": Bad(alert_with_odd_content),
    "an overdue order that cannot expire": Bad(overdue_order_that_cannot_expire),
    "tokens with odd claims": Bad(tokens_with_odd_claims),
    "a setting out of range": Bad(setting_out_of_range),
}
