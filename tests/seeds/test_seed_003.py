"""Document 003: payments and coupons on three brokers. The names in the comments are those of its diagrams."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from json import dumps, loads
from uuid import UUID, uuid4

import pytest

from coupons import invariants
from coupons.models import Coupon, IssueRequest, Reservation
from devstack import wait_until
from kafka_bridge.client import topic_configs
from kafka_bridge.models import DeadLetter, ProcessedEvent
from kafka_bridge.registry import prefixed
from orders.models import Product, StoredOrder
from tests.cluster.brokers import Cluster, three_brokers
from tests.seeds.document import SECONDS, Document, coupons_of, declined, event_of, notices_of, running, transaction_of
from tests.seeds.failing import failing_for, tries
from tests.support.factories import CouponFactory
from tests.support.kafka import produce
from tests.support.provider import Provider

pytestmark = pytest.mark.django_db(transaction=True)

PAYMENTS, REQUESTS, DLQ = "trace-topic", "coupon-topic", "DLQ-topic"
ISSUERS, PLATFORM, NOTIFICATION = "coupon-issue-consumer-group", "order-data-platform-group", "order-notification-group"
EFFECTS = ("notification", "data-platform", "ranking", "monitoring")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with three_brokers(tmp_path_factory.mktemp("stack")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def alert_talk() -> Iterator[Provider]:
    """AlertTalkClient's other side."""
    alert_talk = Provider()
    alert_talk.up()
    yield alert_talk
    alert_talk.close()


@pytest.fixture(scope="module")
def document(
    stores: None, cluster: Cluster, alert_talk: Provider, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Document]:
    changes = {"ALIMTALK_URL": alert_talk.url, "ALIMTALK_KEY": "key"}
    roles = ["relay", "issuer", "effects"]
    with running("003", tmp_path_factory.mktemp("003"), roles, changes, kafka=cluster.servers) as document:
        yield document


@pytest.fixture(scope="module")
def product(document: Document) -> Product:
    return Product.objects.create(name="Lamp", price=2000)


def make_coupon(quantity: int) -> Coupon:
    """A coupon whose stock is taken in the request's transaction."""
    return CouponFactory.create(admission="reserve", total_quantity=quantity)


def ask(document: Document, coupon: Coupon, user_id: int) -> UUID:
    return document.ask(f"/api/v1/coupons/{coupon.pk}/issue-async", user_id=user_id)


def test_every_topic_has_three_partitions_with_three_replicas_of_which_two_must_acknowledge(
    document: Document, cluster: Cluster
) -> None:
    for topic in (PAYMENTS, REQUESTS, DLQ):
        assert document.reader.replicas(topic) == [3, 3, 3]
    for config in topic_configs([prefixed(PAYMENTS), prefixed(REQUESTS), prefixed(DLQ)]).values():
        assert isinstance(config, dict)
        assert config["min.insync.replicas"] == "2"


def test_diagram_of_the_payment_from_the_request_to_the_stored_order_and_the_alert(
    document: Document, alert_talk: Provider, product: Product
) -> None:
    # Client->>PaymentService: 결제 요청
    # PaymentService->>OrderRepository: 주문 상태 변경
    # PaymentService->>ApplicationEventPublisher: OrderCreatedEvent 발행
    order = document.pay(product, user_id=1)
    # ApplicationEventPublisher->>Kafka: 메시지 발행
    event = document.completed(PAYMENTS, order)
    assert (event.body["orderId"], event.body["payAmount"]) == (order.pk, 2000)
    # Kafka-->>OrderListener: 주문 정보 처리
    # OrderListener->>OrderRepository: DB 저장 및 ack
    document.when_committed(PLATFORM, event)
    assert StoredOrder.objects.get(order_id=order.pk).user_id == 1
    # Kafka-->>AlertListener: 알림 전송
    # AlertListener->>AlertTalkClient: 알림 전송 및 ack
    document.when_committed(NOTIFICATION, event)
    (notice,) = notices_of(alert_talk, order)
    assert loads(notice)["userId"] == 1


def test_diagram_of_the_coupon_from_the_stock_in_the_transaction_to_the_ack(document: Document) -> None:
    coupon = make_coupon(2)
    issuer = document.service.processes["issuer"]
    issuer.send_signal(signal.SIGSTOP)
    try:
        # Client->>IssueCouponUseCase: 쿠폰 발급 요청
        # IssueCouponUseCase->>Transaction: 트랜잭션 실행
        # Transaction->>CouponIssueService: 쿠폰 타입 조회
        # Transaction->>CouponStockService: 재고 차감
        request_id = ask(document, coupon, 5)
        coupon.refresh_from_db()
        assert (coupon.reserved, coupon.issued, coupons_of(5)) == (1, 0, [])
        # Transaction-->>IssueCouponUseCase: 트랜잭션 커밋
        # What is published afterwards was committed with the stock.
        reserved_in = transaction_of("coupons_reservation", "request_id", request_id)
        assert reserved_in == transaction_of("kafka_bridge_outboxmessage", "event_id", request_id)
        # IssueCouponUseCase->>CouponQueueService: Kafka 발행
        # CouponQueueService->>Kafka: 쿠폰 이벤트 발행
        request = document.published(REQUESTS, request_id, str(coupon.pk))
        assert not IssueRequest.objects.filter(request_id=request_id).exists()
    finally:
        issuer.send_signal(signal.SIGCONT)
    # Kafka-->>CouponListener: 메시지 수신
    # CouponListener->>CouponIssueService: 쿠폰 생성
    # CouponIssueService->>CouponDB: 쿠폰 저장
    assert document.decided(request_id).status == "SUCCESS"
    coupon.refresh_from_db()
    assert (coupon.reserved, coupon.issued, coupons_of(5)) == (0, 1, [coupon.pk])
    # CouponListener-->>Kafka: ack
    document.when_committed(ISSUERS, request)


def test_a_repeat_and_a_sold_out_coupon_are_refused_in_the_transaction(document: Document) -> None:
    coupon = make_coupon(1)
    ask(document, coupon, 6)
    path = f"/api/v1/coupons/{coupon.pk}/issue-async"
    codes = [document.call("POST", path, {}, user_id=user_id).body["code"] for user_id in (6, 7)]
    assert codes == ["already_issued", "sold_out"]


def test_a_message_that_comes_twice_is_ignored(document: Document) -> None:
    coupon = make_coupon(5)
    request_id = ask(document, coupon, 8)
    request = document.published(REQUESTS, request_id, str(coupon.pk))
    produce(REQUESTS, [dumps(request.body).encode()], key=request.key.encode())
    again = document.reader.find(
        REQUESTS, lambda record: record.body == request.body and record.offset > request.offset, "the repeat"
    )
    document.when_committed(ISSUERS, again)
    assert IssueRequest.objects.get(request_id=request_id).offset == request.offset
    coupon.refresh_from_db()
    assert (coupon.issued, coupons_of(8)) == (1, [coupon.pk])


def test_a_key_of_eight_bytes_keeps_no_request_from_being_decided(document: Document) -> None:
    coupon = make_coupon(1)
    request_id = uuid4()
    body = {"requestId": str(request_id), "userId": 9, "couponId": coupon.pk}
    # LongSerializer
    produce(REQUESTS, [dumps(body).encode()], key=coupon.pk.to_bytes(8))
    assert document.decided(request_id).status == "SUCCESS"
    assert coupons_of(9) == [coupon.pk]


def test_after_one_try_and_three_more_a_message_is_on_the_dlq_and_its_unit_is_back(document: Document) -> None:
    coupon = make_coupon(1)
    with failing_for(13):
        request_id = ask(document, coupon, 13)
        decided = document.decided(request_id)
        count, seconds = tries()
    # FixedBackOff(1000L, 3)
    assert count == 4
    assert seconds >= 3
    assert (decided.status, decided.reason) == ("FAILED", "ERROR")
    # The dead letter keeps its key: it is on the partition of the DLQ that the key leads to.
    letter = document.published(DLQ, request_id, str(coupon.pk))
    assert letter.headers["x-original-topic"] == prefixed(REQUESTS)
    assert letter.headers["x-original-offset"] == str(decided.offset)
    coupon.refresh_from_db()
    assert (coupon.reserved, Reservation.objects.filter(coupon=coupon).exists()) == (0, False)


def test_the_dlq_is_one_for_payments_too(document: Document) -> None:
    produce(PAYMENTS, [b"["], key=b"1")
    letters = DeadLetter.objects.filter(topic=PAYMENTS, payload=b"[")
    wait_until(lambda: letters.count() == len(EFFECTS), SECONDS, "a listener has no dead letter")
    document.reader.find(
        DLQ, lambda record: record.headers.get("x-original-topic") == prefixed(PAYMENTS), "the dead letter"
    )


def test_two_brokers_go_on_when_the_third_is_killed_and_nothing_is_lost(
    document: Document, cluster: Cluster, alert_talk: Provider, product: Product
) -> None:
    coupon = make_coupon(10)
    first_id = ask(document, coupon, 21)
    request = document.published(REQUESTS, first_id, str(coupon.pk))
    cluster.brokers[cluster.leader(REQUESTS, request.partition)].kill()
    # The requests are accepted meanwhile.
    request_ids = [ask(document, coupon, user_id) for user_id in range(22, 27)]
    order = document.pay(product, user_id=22)
    for request_id in (first_id, *request_ids):
        assert document.decided(request_id).status == "SUCCESS"
    for group in EFFECTS:
        handled = ProcessedEvent.objects.filter(consumer_group=group, event_id=event_of(order))
        wait_until(handled.exists, SECONDS, f"{group} does not have the order")
    assert len(notices_of(alert_talk, order)) == 1
    coupon.refresh_from_db()
    assert (coupon.issued, coupon.reserved) == (6, 0)
    assert {name: lines for name, lines in invariants.violations() if lines} == {}


def test_what_of_the_document_would_lose_messages_is_refused_and_told() -> None:
    assert declined("003", KAFKA_PRODUCER_CONFIG=dumps({"retries": 3})) == (
        "KAFKA_PRODUCER_CONFIG: retries is fixed for safety, remove it"
    )
    # Keys of eight bytes: no reader of the document takes them for text.
    assert declined("003", KAFKA_PRODUCER_CONFIG=dumps({"key.serializer": "LongSerializer"})) == (
        "KAFKA_PRODUCER_CONFIG: key.serializer is no property of this client: messages are bytes here, remove it"
    )
    groups = dict.fromkeys(("issue", "notification", "data-platform"), "default-group")
    assert "KAFKA_GROUPS: " in declined("003", KAFKA_GROUPS=dumps(groups))
