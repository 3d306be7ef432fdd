"""Document 002: coupon issuing and order events of one service. The names in the comments are those of its diagrams."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from json import dumps, loads
from typing import Any
from uuid import UUID, uuid4

import pytest

from coupons import invariants
from coupons.models import Coupon, UserCoupon
from devstack import wait_until
from kafka_bridge.models import DeadLetter, ProcessedEvent
from kafka_bridge.registry import prefixed
from orders.models import Order, Product, StoredOrder
from tests.seeds.document import SECONDS, Document, coupons_of, declined, event_of, notices_of, running, transaction_of
from tests.support.factories import CouponFactory
from tests.support.kafka import committed_offsets, produce
from tests.support.provider import HANG_UP, Answer, Call, Provider

pytestmark = pytest.mark.django_db(transaction=True)

REQUESTS, ORDERS = "coupon-publish-request", "order-completed"
COUPON_GROUP, ORDER_GROUP = "coupon-consumer-group", "order-consumer-group"
EFFECTS = ("notification", "data-platform", "monitoring")


class Outside:
    """The three systems outside, by effect, and in which order they are called."""

    def __init__(self) -> None:
        self.systems = {effect: Provider() for effect in EFFECTS}
        self.called: list[str] = []
        for effect, system in self.systems.items():
            system.answer = partial(self._answer, effect)
            system.up()

    def urls(self) -> dict[str, str]:
        names = ("ALIMTALK_URL", "DATA_PLATFORM_URL", "ORDER_MONITORING_URL")
        return {name: self.systems[effect].url for name, effect in zip(names, EFFECTS, strict=True)}

    def notices(self, order: Order) -> Mapping[str, list[Any]]:
        """By effect, what its system was told of an order."""
        return {effect: [*map(loads, notices_of(system, order))] for effect, system in self.systems.items()}

    def close(self) -> None:
        for system in self.systems.values():
            system.close()

    def _answer(self, effect: str, call: Call) -> Answer:
        self.called.append(effect)
        return 200


@pytest.fixture(scope="module")
def outside() -> Iterator[Outside]:
    outside = Outside()
    yield outside
    outside.close()


@pytest.fixture(scope="module")
def document(stores: None, outside: Outside, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Document]:
    changes = {**outside.urls(), "ALIMTALK_KEY": "key"}
    with running("002", tmp_path_factory.mktemp("002"), ["relay", "issuer"], changes) as document:
        # Naming one effect of a subscription runs all of it.
        document.service.start_command("consume_coupons", "--group", "notification", name="effects")
        yield document


@pytest.fixture(scope="module")
def product(document: Document) -> Product:
    return Product.objects.create(name="Keyboard", price=3000)


def ask(document: Document, coupon: Coupon, user_id: int) -> UUID:
    return document.ask(f"/api/v1/users/{user_id}/coupons/{coupon.pk}/issue", user_id=user_id)


def when_all_had(order: Order) -> None:
    rows = ProcessedEvent.objects.filter(event_id=event_of(order), consumer_group__in=EFFECTS)
    wait_until(lambda: rows.count() == len(EFFECTS), SECONDS, f"not every effect had {order}")


def test_diagram_1_a_request_goes_from_the_door_of_the_user_to_the_coupon(document: Document) -> None:
    coupon = CouponFactory.create(total_quantity=5)
    # 사용자->>컨트롤러: POST /api/v1/users/{userId}/coupons/{couponId}/issue
    # 컨트롤러-->>사용자: "요청 접수됨" 즉시 응답
    request_id = ask(document, coupon, 1)
    # The relay publishes after the answer:
    # 컨트롤러->>CouponEventPublisher: publishCouponRequest(request)
    # CouponEventPublisher->>Kafka: 메시지 발행 (키: couponId)
    # Kafka-->>CouponEventPublisher: 발행 확인
    # CouponEventPublisher-->>컨트롤러: 발행 완료
    request = document.published(REQUESTS, request_id, str(coupon.pk))
    # Kafka->>CouponEventConsumer: 메시지 수신
    # CouponEventConsumer->>CouponService: 쿠폰 발급 처리
    # CouponService->>데이터베이스: 트랜잭션 시작
    # CouponService->>데이터베이스: 쿠폰 조회
    # 데이터베이스-->>CouponService: 쿠폰 정보
    # CouponService->>데이터베이스: 중복 발급 확인
    # 데이터베이스-->>CouponService: 중복 여부
    decided = document.decided(request_id)
    assert (decided.status, decided.partition, decided.offset) == ("SUCCESS", request.partition, request.offset)
    # CouponService->>데이터베이스: UserCoupon 생성
    # CouponService->>데이터베이스: 쿠폰 발급 수량 증가
    # CouponService->>데이터베이스: 트랜잭션 커밋
    coupon.refresh_from_db()
    assert (coupons_of(1), coupon.issued) == ([coupon.pk], 1)
    assert transaction_of("coupons_usercoupon", "coupon_id", coupon.pk) == transaction_of(
        "coupons_issuerequest", "request_id", request_id
    )
    # CouponService-->>CouponEventConsumer: 발급 성공
    # CouponEventConsumer-->>Kafka: 메시지 처리 완료
    document.when_committed(COUPON_GROUP, request)
    document.when_shared(COUPON_GROUP, [3])


def test_another_users_path_is_closed(document: Document) -> None:
    coupon = CouponFactory.create()
    refused = document.call("POST", f"/api/v1/users/2/coupons/{coupon.pk}/issue", {}, user_id=1)
    assert (refused.status, refused.body["code"]) == (403, "forbidden")


def test_without_stock_and_for_a_repeat_nothing_is_written_and_the_message_is_done(document: Document) -> None:
    coupon = CouponFactory.create(total_quantity=1)
    won, repeat, late = (ask(document, coupon, user_id) for user_id in (1, 1, 2))
    # CouponService->>데이터베이스: 트랜잭션 롤백
    # CouponService-->>CouponEventConsumer: 발급 실패
    reasons = [document.decided(request_id).reason for request_id in (won, repeat, late)]
    assert reasons == [None, "ALREADY_ISSUED", "SOLD_OUT"]
    coupon.refresh_from_db()
    assert (coupon.issued, UserCoupon.objects.filter(coupon=coupon).count()) == (1, 1)
    # CouponEventConsumer-->>Kafka: 메시지 처리 완료
    document.when_committed(COUPON_GROUP, document.published(REQUESTS, late, str(coupon.pk)))
    assert document.status(late, 2)["reason"] == "SOLD_OUT"


def test_a_message_of_the_documents_producer_is_decided(document: Document) -> None:
    coupon = CouponFactory.create(total_quantity=1)
    request_id = uuid4()
    # Two text serializers, no headers.
    body = {"requestId": str(request_id), "userId": 9, "couponId": coupon.pk}
    produce(REQUESTS, [dumps(body).encode()], key=str(coupon.pk).encode())
    assert document.decided(request_id).status == "SUCCESS"
    assert coupons_of(9) == [coupon.pk]


def test_diagram_2_a_paid_order_reaches_the_three_systems_in_order_and_then_is_done(
    document: Document, outside: Outside, product: Product
) -> None:
    # The ids of the three effects are equal: one subscription, three instances.
    document.when_shared(ORDER_GROUP, [2, 2, 2])
    # 사용자->>PaymentService: 결제 처리 요청
    # PaymentService->>PaymentService: 결제 처리 (트랜잭션)
    # PaymentService->>OrderEventPublisher: OrderCompletedEvent 발행
    # PaymentService-->>사용자: 결제 완료 응답
    order = document.pay(product, user_id=1)
    # OrderEventPublisher->>Kafka: 메시지 발행 (키: orderId)
    # Kafka-->>OrderEventPublisher: 발행 확인
    # OrderEventPublisher-->>PaymentService: 발행 완료
    event = document.completed(ORDERS, order)
    # Kafka->>OrderEventConsumer: 메시지 수신
    # OrderEventConsumer->>외부시스템: 알림톡 발송
    # OrderEventConsumer->>외부시스템: 데이터 분석 업데이트
    # OrderEventConsumer->>외부시스템: 모니터링 알림
    when_all_had(order)
    assert list(dict.fromkeys(outside.called)) == ["notification", "data-platform", "monitoring"]
    notices = outside.notices(order)
    assert [notice["userId"] for notice in notices["notification"]] == [1]
    assert (notices["data-platform"], notices["monitoring"]) == ([event.body], [event.body])
    assert StoredOrder.objects.get(order_id=order.pk).pay_amount == 3000
    # OrderEventConsumer-->>Kafka: 메시지 처리 완료
    document.when_committed(ORDER_GROUP, event)


def test_alimtalk_away_holds_up_the_other_two_until_it_is_back(
    document: Document, outside: Outside, product: Product
) -> None:
    alimtalk = outside.systems["notification"]
    working, alimtalk.answer = alimtalk.answer, lambda call: HANG_UP
    order = document.pay(product, user_id=2)
    event = document.completed(ORDERS, order)
    # More than one round of tries.
    wait_until(lambda: alimtalk.tries(event_of(order)) > 3, SECONDS, "AlimTalk is not tried again")
    notices = outside.notices(order)
    assert (notices["data-platform"], notices["monitoring"]) == ([], [])
    assert committed_offsets(prefixed(ORDER_GROUP), ORDERS)[event.partition] <= event.offset
    alimtalk.answer = working
    when_all_had(order)
    document.when_committed(ORDER_GROUP, event)
    notices = outside.notices(order)
    assert (notices["data-platform"], notices["monitoring"]) == ([event.body], [event.body])
    assert not DeadLetter.objects.exists()


def test_nothing_of_this_breaks_an_invariant(document: Document) -> None:
    assert {name: lines for name, lines in invariants.violations() if lines} == {}


def test_equal_ids_of_groups_that_are_no_effects_of_an_order_are_refused_and_told() -> None:
    line = declined("002", KAFKA_GROUPS=dumps({"issue": "one-group", "notification": "one-group"}))
    assert line.startswith("KAFKA_GROUPS: ")
