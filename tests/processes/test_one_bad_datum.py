"""One bad datum of any kind stops nothing but itself: all other users are served as before, at the usual pace.

The whole system runs and has served a crowd; then each test puts one bad datum in and has another crowd served.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import statistics
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import jwt
import pytest
from django.conf import settings
from django.db import connection
from django.test import TransactionTestCase
from django_redis import get_redis_connection
from pytest_django import DjangoDbBlocker

from coupons.admission import ADMISSIONS
from coupons.admission.gate import redis_keys
from coupons.models import Coupon, RolloutChange
from coupons.redis_queue import queue
from demo.load_client import Answer, Ask, Connection, Crowd, encode_request
from demo.processes import wait_until_ready
from demo.sale import bearer_tokens
from devstack import wait_until
from fuzz.raw_producer import RawProducer
from kafka_bridge.client import delete_topics, ensure_topics
from kafka_bridge.models import Alert, DeadLetter, OutboxMessage, ProcessedEvent
from kafka_bridge.registry import prefixed
from orders.effects.monitoring import MANY_ORDERS
from orders.models import Order, Product
from orders.ranking.days import last_days
from tests.processes.conftest import Web
from tests.support.factories import CouponFactory
from tests.support.kafka import read_to_end
from tests.support.ledger import when_decided
from tests.support.messages import request_body
from tests.support.provider import Provider
from tests.support.service import Service, environment, run_command
from tests.support.tables import empty_tables

pytestmark = pytest.mark.django_db(transaction=True)

EFFECTS = ("notification", "data-platform", "ranking", "monitoring")
USERS = 60
ORDERS = 12
SECONDS = 90.0
# So much longer than without the bad datum a step may take; what is shorter than a second is noise on a busy machine.
RATIO = 5.0
NOISE_SECONDS = 1.0


@dataclass
class Shop:
    """The running system, and the answers that its crowds got."""

    port: int
    service: Service
    coupons: Sequence[Coupon]
    products: list[Product]
    answers: list[Answer] = field(default_factory=list)
    sold: Counter[int] = field(default_factory=Counter)
    # The seconds of each step without any bad datum.
    usual: dict[str, float] = field(default_factory=dict)

    @property
    def gate(self) -> Coupon:
        return next(coupon for coupon in self.coupons if coupon.admission == "gate")

    def serve_crowd(self) -> dict[str, float]:
        """Every user gets a coupon and some order with it; returns the seconds of each step."""
        first = len(self.answers) + 1
        users = range(first, first + USERS)
        tokens = bearer_tokens(users)
        began = time.monotonic()
        answers = self._ask(users, tokens)
        when_decided(answers, SECONDS)
        decided = time.monotonic()
        orders = asyncio.run(self._shop(answers, tokens))
        paid = time.monotonic()
        rows = Order.objects.filter(id__in=orders).values_list("completed_event_id", flat=True)
        events = [event for event in rows if event is not None]
        assert len(events) == ORDERS
        for group in EFFECTS:
            wait_until(partial(_has_handled, group, events), SECONDS, f"{group} misses orders")
        reached = time.monotonic()
        self.answers += answers
        return {
            "accept": statistics.median(answer.latency for answer in answers),
            "decide": decided - began,
            "shop": paid - decided,
            "effects": reached - paid,
        }

    def _ask(self, users: Sequence[int], tokens: dict[int, str]) -> list[Answer]:
        wanted = [(user_id, self.coupons[user_id % len(self.coupons)]) for user_id in users]
        asks = [Ask(str(uuid4()), user_id, coupon.pk, coupon.coupon_type, user_id) for user_id, coupon in wanted]
        crowd = Crowd(self.port, tokens, connections=8)
        asyncio.run(asyncio.wait_for(crowd.ask_all(asks), SECONDS))
        # A 503 before any work is an answer, and its retry counts in the latency; a lost connection is a fault.
        assert crowd.retries.keys() <= {"503"}
        assert {answer.status for answer in crowd.answers} == {202}
        return crowd.answers

    async def _shop(self, answers: Sequence[Answer], tokens: dict[int, str]) -> list[int]:
        """Every user reads the result, some read lists and pay an order; returns the ids of the orders."""
        client = Connection(self.port)
        orders = []
        for number, answer in enumerate(answers):
            token = tokens[answer.ask.user_id]
            result = await self.get(f"/api/v1/issue-requests/{answer.request_id}", token, client)
            assert (result["status"], result["reason"]) == ("SUCCESS", None)
            if number >= ORDERS:
                continue
            coupons = await self.get(f"/api/v1/users/{answer.ask.user_id}/coupons", token, client)
            assert [one["couponId"] for one in coupons["results"]] == [answer.ask.coupon_id]
            listed = await self.get("/api/v1/coupons", token, client)
            assert {coupon.pk for coupon in self.coupons} <= {one["couponId"] for one in listed["results"]}
            product = self.products[number % len(self.products)]
            body = {"items": [{"productId": product.pk, "quantity": 2}], "userCouponId": result["userCouponId"]}
            order = await self._call("POST", "/api/v1/orders", token, client, body, 201)
            await self._call("POST", f"/api/v1/orders/{order['orderId']}/pay", token, client, {}, 200)
            orders.append(order["orderId"])
            self.sold[product.pk] += 2
        client.close()
        return orders

    async def get(self, path: str, token: str, client: Connection) -> Any:
        return await self._call("GET", path, token, client, None, 200)

    async def _call(self, method: str, path: str, token: str, client: Connection, body: Any, wanted: int) -> Any:
        status, raw = await client.exchange(encode_request(method, path, self.port, {"authorization": token}, body))
        assert status == wanted, (path, status, raw)
        return json.loads(raw)

    def read(self, path: str, user_id: int) -> Any:
        """The JSON of a GET that must be answered 200."""
        (raw,) = self._ask_each(path, [bearer_tokens([user_id])[user_id]], {200})
        return json.loads(raw[1])

    def statuses(self, path: str, tokens: Sequence[str]) -> list[int]:
        """The status of a GET with each of these tokens."""
        return [status for status, _ in self._ask_each(path, tokens, {200, 401})]

    def _ask_each(self, path: str, tokens: Sequence[str], wanted: Collection[int]) -> list[tuple[int, bytes]]:
        async def ask() -> list[tuple[int, bytes]]:
            client = Connection(self.port)
            try:
                requests = [encode_request("GET", path, self.port, {"authorization": token}) for token in tokens]
                return [await client.exchange(request) for request in requests]
            finally:
                client.close()

        answers = asyncio.run(ask())
        assert {status for status, _ in answers} <= set(wanted), answers
        return answers


def _has_handled(group: str, events: Sequence[UUID]) -> bool:
    return ProcessedEvent.objects.filter(consumer_group=group, event_id__in=events).count() == len(events)


class System:
    """Every process of the Procfile on empty tables and topics of its own: started anew after a failure only."""

    def __init__(self, web: Web, folder: Path) -> None:
        self._web = web
        self._folder = folder
        self._running: ExitStack | None = None
        self._shop: Shop | None = None
        # Whether the last test that used it came to its end.
        self.is_sound = False

    def shop(self) -> Shop:
        """The shop, in which a first crowd has been served."""
        if self._shop is None or not self.is_sound:
            self.stop()
            self._running = ExitStack()
            self._shop = self._running.enter_context(_running_shop(self._web, self._folder))
            self._shop.usual = self._shop.serve_crowd()
        self.is_sound = False
        return self._shop

    def stop(self) -> None:
        if self._running is not None:
            self._running.close()
            self._running = self._shop = None


@contextmanager
def _running_shop(web: Web, folder: Path) -> Iterator[Shop]:
    get_redis_connection("default").flushdb()
    with ExitStack() as stack:
        alimtalk = Provider()
        stack.callback(alimtalk.close)
        alimtalk.up()
        stack.callback(get_redis_connection("default").flushdb)
        stack.enter_context(_without_checks())
        stack.enter_context(_own_topics())
        service = Service(
            folder, environment(ALIMTALK_URL=alimtalk.url, ALIMTALK_KEY="key", RECONCILE_PATIENCE_SECONDS="5")
        )
        stack.callback(service.end)
        RolloutChange.objects.create(flag="issue-worker", percent=50)
        coupons = [CouponFactory.create(admission=name, total_quantity=10_000) for name in ADMISSIONS]
        products = [Product.objects.create(name=name, price=10_000) for name in ("tea", "mug")]
        for role in ("relay", "issuer", "effects", "orders", "worker", "reconciler"):
            service.start(role)
        yield Shop(web.port, service, coupons, products)


@contextmanager
def _without_checks() -> Iterator[None]:
    """Tables that take what an older version, or a restore, may have left in them; emptied at the end."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint"
            " WHERE contype = 'c' AND conrelid IN ('coupons_coupon'::regclass, 'orders_product'::regclass)"
        )
        constraints = cursor.fetchall()
        for table, name, _ in constraints:
            cursor.execute(f"ALTER TABLE {table} DROP CONSTRAINT {name}")
    yield
    empty_tables()
    with connection.cursor() as cursor:
        for table, name, definition in constraints:
            cursor.execute(f"ALTER TABLE {table} ADD CONSTRAINT {name} {definition}")


@contextmanager
def _own_topics() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "KAFKA_TOPIC_PREFIX", f"t{secrets.token_hex(4)}-")
        created, _ = ensure_topics(settings.KAFKA_ROUTES)
        yield
        delete_topics(created)


@pytest.fixture(scope="module")
def system(
    shared_web: Web, django_db_blocker: DjangoDbBlocker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[System]:
    """The system for all tests of this module, which do not empty the tables after each other."""
    with django_db_blocker.unblock(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransactionTestCase, "_fixture_teardown", lambda case: None)
        if shared_web.process.poll() is not None:
            shared_web.process.start()
        wait_until_ready(shared_web.process, shared_web.port)
        system = System(shared_web, tmp_path_factory.mktemp("system"))
        try:
            yield system
        finally:
            system.stop()
            connection.close()


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
        rule=MANY_ORDERS, severity="nonsense", summary="\x01\u202e" + "x" * 100_000, runbook="javascript:alert(1)"
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
    "the holders of a gate": Bad(redis_key(lambda shop: redis_keys.keys(shop.gate.pk).holders)),
    "the open requests of a gate": Bad(redis_key(lambda shop: redis_keys.keys(shop.gate.pk).pending)),
    "the Redis queue": Bad(redis_key(lambda shop: queue.QUEUE)),
    "the quantities of the ranking": Bad(ranking_key),
    "a coupon that closes after the calendar": Bad(coupon_row(closes_at="9999-12-31 23:59:59-05")),
    "a coupon that opens before the calendar": Bad(coupon_row(opens_at="0001-01-01 00:00:00+09")),
    "a product with an odd name": Bad(product_with_an_odd_name),
    "an outbox row with headers of garbage": Bad(outbox_row_with_headers_of_garbage),
    "an alert with odd content": Bad(alert_with_odd_content),
    "an overdue order that cannot expire": Bad(overdue_order_that_cannot_expire),
    "tokens with odd claims": Bad(tokens_with_odd_claims),
    "a setting out of range": Bad(setting_out_of_range),
}


@pytest.mark.parametrize("kind", DATA)
def test_one_bad_datum_stops_nothing_but_itself(kind: str, system: System) -> None:
    bad, shop = DATA[kind], system.shop()
    earlier = list(DeadLetter.objects.values_list("id", flat=True))
    shows = bad.put(shop)
    beside = shop.serve_crowd()
    wait_until(shows, SECONDS, f"nothing shows of {kind}", 0.2)

    slow = {
        step: (shop.usual[step], seconds)
        for step, seconds in beside.items()
        if seconds > RATIO * max(shop.usual[step], NOISE_SECONDS)
    }
    assert not slow
    letters = DeadLetter.objects.exclude(id__in=earlier)
    assert set(letters.values_list("consumer_group", flat=True)) == set(bad.dead_letters)
    assert [name for name, process in shop.service.processes.items() if process.poll() is not None] == []
    system.is_sound = True
