"""Document 004: effects of a confirmed order, and a flash sale over five partitions. Comments name its arrows."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from json import dumps, loads
from uuid import UUID

import pytest
from django.conf import settings

from coupons import invariants
from coupons.models import Coupon
from devstack import wait_until
from kafka_bridge.models import DeadLetter, ProcessedEvent
from orders.models import Order, Product, StoredOrder
from tests.seeds.document import SECONDS, Document, coupons_of, declined, event_of, notices_of, running, transaction_of
from tests.support.factories import CouponFactory
from tests.support.provider import Provider

pytestmark = pytest.mark.django_db(transaction=True)

REQUESTS, SUCCEEDED, FAILED = "coupon-issue", "coupon-issue-succeeded", "coupon-issue-failed"
ORDERS = "order-completed"
ISSUERS, PLATFORM, RANKING = "coupon-issue-consumer-group", "order-data-platform-group", "order-ranking-group"


@pytest.fixture(scope="module")
def platform() -> Iterator[Provider]:
    """The data platform outside."""
    platform = Provider()
    platform.up()
    yield platform
    platform.close()


@pytest.fixture(scope="module")
def document(stores: None, platform: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Document]:
    changes = {"DATA_PLATFORM_URL": platform.url}
    with running("004", tmp_path_factory.mktemp("004"), ["relay", "issuer"], changes) as document:
        # DataPlatform and RankingService.
        document.service.start_command(
            "consume_coupons", "--group", "data-platform", "--group", "ranking", name="effects"
        )
        yield document


@pytest.fixture(scope="module")
def product(document: Document) -> Product:
    return Product.objects.create(name="Mug", price=1000)


def door(coupon: Coupon) -> str:
    return f"/api/v1/coupons/{coupon.pk}/issue-async"


def when_handled(group: str, order: Order) -> None:
    rows = ProcessedEvent.objects.filter(consumer_group=group, event_id=event_of(order))
    wait_until(rows.exists, SECONDS, f"{group} does not have {order}")


def sold(document: Document, product: Product) -> int:
    ranking = document.call("GET", "/api/v1/rankings/best-sellers?days=2&limit=5", user_id=1).body["results"]
    return sum(row["quantity"] for row in ranking if row["productId"] == product.pk)


def test_diagram_1_a_confirmed_order_reaches_the_data_platform_and_the_ranking(
    document: Document, platform: Provider, product: Product
) -> None:
    before = sold(document, product)
    # Client->>PaymentService: 결제 요청
    # PaymentService-->>ApplicationEventManager: 결제 완료 이벤트 발행
    # OrderService->>ApplicationEventManager: 결제 완료 이벤트 수신
    # OrderService->>OrderService: 주문 확정 처리
    # After it, unlike the drawing: PaymentService->>Client: 결제 완료 응답
    order = document.pay(product, user_id=1)
    # OrderService-->>Kafka: 주문 확정 이벤트 발행
    # It is an event of the transaction that confirmed the order.
    assert transaction_of("orders_order", "id", order.pk) == transaction_of(
        "kafka_bridge_outboxmessage", "event_id", event_of(order)
    )
    event = document.completed(ORDERS, order)
    assert (event.body["userId"], event.body["payAmount"]) == (1, 1000)
    # DataPlatform->>Kafka: 주문 정보 수신
    # DataPlatform-->>DataPlatform: 주문 정보 저장
    when_handled("data-platform", order)
    assert StoredOrder.objects.get(order_id=order.pk).pay_amount == 1000
    assert [loads(notice) for notice in notices_of(platform, order)] == [event.body]
    # RankingService->>Kafka: 판매량 정보 수신
    # RankingService-->>RankingService: 판매량 업데이트
    when_handled("ranking", order)
    assert sold(document, product) == before + 1
    for group in (PLATFORM, RANKING):
        document.when_committed(group, event)


def test_an_effect_that_fails_is_logged_and_no_more_and_the_next_order_reaches_it(
    document: Document, platform: Provider, product: Product
) -> None:
    before = sold(document, product)
    platform.answer = lambda call: 400
    order = document.pay(product, user_id=2)
    event = document.completed(ORDERS, order)
    document.when_committed(PLATFORM, event)
    log = document.service.processes["effects"].log_path.read_text()
    assert f"data-platform: {event.topic}[{event.partition}]@{event.offset} logged and skipped" in log
    assert not StoredOrder.objects.filter(order_id=order.pk).exists()
    assert not DeadLetter.objects.exists()
    # The other effect does not notice.
    when_handled("ranking", order)
    assert sold(document, product) == before + 1
    platform.answer = lambda call: 200
    later = document.pay(product, user_id=2)
    wait_until(StoredOrder.objects.filter(order_id=later.pk).exists, SECONDS, "the next order is not stored")


def test_diagram_2_success_and_failure_are_events_on_topics_of_their_own(document: Document) -> None:
    coupon = CouponFactory.create(total_quantity=1)
    key = str(coupon.pk)
    # Client->>CouponService: 쿠폰 발급 요청
    # CouponService->>ApplicationEventManager: 쿠폰 발급 요청 이벤트 발행
    # CouponService->>Client: 쿠폰 발급 요청 생성됨 응답
    won, lost = (document.ask(door(coupon), user_id=user_id) for user_id in (1, 2))
    # ApplicationEventManager-->>Kafka: 쿠폰 발급 요청 이벤트 전송(메시지키: coupon-id)
    requests = [document.published(REQUESTS, request_id, key) for request_id in (won, lost)]
    assert requests[0].offset < requests[1].offset
    # Kafka->>CouponService: 쿠폰 발급 요청 이벤트 수신
    # CouponService->>CouponService: 쿠폰 발급 처리
    # CouponService->>CouponService: 커밋
    # CouponService->>ApplicationEventManager: 쿠폰 발급 완료 이벤트 발행
    # Kafka->>ApplicationEventManager: 쿠폰 발급 완료 이벤트 수신
    # Kafka->>Kafka: 쿠폰 발급 완료 이벤트 발행
    success = document.result(SUCCEEDED, won, key)
    assert (success.body["userId"], success.body["status"], success.body["reason"]) == (1, "SUCCESS", None)
    # CouponService->>CouponService: 롤백
    # CouponService->>ApplicationEventManager: 쿠폰 발급 실패 이벤트 발행
    # Kafka->>ApplicationEventManager: 쿠폰 발급 실패 이벤트 수신
    # Kafka->>Kafka: 쿠폰 발급 실패 이벤트 발행
    failure = document.result(FAILED, lost, key)
    assert (failure.body["userId"], failure.body["status"], failure.body["reason"]) == (2, "FAILED", "SOLD_OUT")
    assert (coupons_of(1), coupons_of(2)) == ([coupon.pk], [])
    coupon.refresh_from_db()
    assert coupon.issued == 1
    document.when_committed(ISSUERS, requests[1])
    # The result events of the two stand in the transactions that decided the requests.
    for request_id, record in ((won, success), (lost, failure)):
        assert transaction_of("coupons_issuerequest", "request_id", request_id) == transaction_of(
            "kafka_bridge_outboxmessage", "event_id", UUID(record.headers["ce_id"])
        )


def test_requests_for_one_coupon_are_handled_one_after_the_other_and_a_repeat_gets_no_second_coupon(
    document: Document,
) -> None:
    coupon = CouponFactory.create(total_quantity=10)
    request_ids = [document.ask(door(coupon), user_id=3) for _ in range(3)]
    rows = [document.decided(request_id) for request_id in request_ids]
    assert [row.reason for row in rows] == [None, "ALREADY_ISSUED", "ALREADY_ISSUED"]
    assert [row.offset for row in rows] == sorted(row.offset for row in rows)
    assert len({row.partition for row in rows}) == 1
    assert coupons_of(3) == [coupon.pk]


def test_five_coupons_on_five_partitions_are_decided_by_five_consumers(document: Document) -> None:
    for topic in (REQUESTS, SUCCEEDED, FAILED):
        assert {route.partitions for route in settings.KAFKA_ROUTES.values() if route.topic == topic} == {5}
        assert len(document.reader.replicas(topic)) == 5
    document.when_shared(ISSUERS, [1] * 5)
    used: dict[int, UUID] = {}
    wait_until(partial(_ask_for_another, document, used), SECONDS, f"not all partitions are used: {used}", 0)
    assert {document.decided(request_id).partition for request_id in used.values()} == set(range(5))


def _ask_for_another(document: Document, used: dict[int, UUID]) -> bool:
    """Ask for one more coupon; True once the requests stand on all partitions."""
    coupon = CouponFactory.create()
    request_id = document.ask(door(coupon), user_id=4)
    used[document.published(REQUESTS, request_id, str(coupon.pk)).partition] = request_id
    return len(used) == 5


def test_nothing_of_this_breaks_an_invariant(document: Document) -> None:
    assert {name: lines for name, lines in invariants.violations() if lines} == {}


def test_a_policy_that_does_not_exist_is_refused_and_told() -> None:
    assert declined("004", ORDER_EFFECT_POLICIES=dumps({"ranking": "ignore"})) == (
        "ORDER_EFFECT_POLICIES: ranking must be retry_then_dead_letter or log_only"
    )
