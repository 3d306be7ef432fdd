"""Document 001: a Redis check in front of Kafka. The names in the comments are those of its diagrams."""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.db import connection
from django_redis import get_redis_connection

from coupons import invariants
from coupons.admission.gate.store import GateStore
from coupons.issuance import status_cache
from coupons.models import Coupon, IssueRequest, RolloutChange
from devstack import wait_until
from kafka_bridge.models import DeadLetter, OutboxMessage
from kafka_bridge.registry import prefixed
from tests.seeds.document import SECONDS, Document, coupons_of, declined, running
from tests.seeds.failing import failing_for, tries
from tests.support.factories import CouponFactory
from tests.support.kafka import committed_offsets, produce
from tests.support.provider import Provider

pytestmark = pytest.mark.django_db(transaction=True)

REQUESTS, DLT = "coupon-issue-requests", "coupon-issue.DLT"
GROUP, DLT_MONITOR = "coupon-issue-consumer-group", "dead-letter-monitor-group"
# Spring writes the class into a header; no reader here needs it.
JAVA_HEADERS = {"__TypeId__": b"kr.hhplus.be.coupon.CouponIssueKafkaEvent"}


@pytest.fixture(scope="module")
def administrator() -> Iterator[Provider]:
    """The webhook that is told of alerts."""
    administrator = Provider()
    administrator.up()
    yield administrator
    administrator.close()


@pytest.fixture(scope="module")
def document(stores: None, administrator: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Document]:
    folder = tmp_path_factory.mktemp("001")
    with running("001", folder, ["relay", "worker", "housekeeper"], {"ALERT_WEBHOOK_URL": administrator.url}) as it:
        # DltMonitoringConsumer is the group dead-letters.
        it.service.start("issuer", "--group", "dead-letters")
        yield it


@pytest.fixture
def make_gated(document: Document) -> Callable[[int], Coupon]:
    """``make_gated(3)``: a coupon of three units behind the gate."""
    return lambda quantity: CouponFactory.create(admission="gate", total_quantity=quantity)


def door(coupon: Coupon) -> str:
    return f"/coupons/{coupon.pk}/issue-async"


def key_of(coupon: Coupon) -> str:
    return f"coupon:{coupon.pk}"


def holders_in_redis(coupon: Coupon) -> set[int]:
    names = get_redis_connection("default").hkeys(GateStore(coupon.pk).keys.holders)
    return {int(name) for name in names if name.isdigit()}


def java_event(coupon: Coupon, user_id: int, requested_at: object, **changes: Any) -> bytes:
    """CouponIssueKafkaEvent as Jackson writes it."""
    fields = {
        "requestId": str(uuid4()),
        "userId": user_id,
        "couponId": coupon.pk,
        "requestedAt": requested_at,
        "source": "API",
    }
    return json.dumps(fields | changes).encode()


def alerts(administrator: Provider) -> Counter[str]:
    """The beginnings of alerts that the administrator was told, by rule."""
    bodies = [json.loads(call.body) for call in list(administrator.effects.values())]
    return Counter(body["rule"].partition(":")[0] for body in bodies if body["endedAt"] is None)


def test_both_diagrams_from_the_check_in_redis_to_the_status(
    document: Document, make_gated: Callable[[int], Coupon]
) -> None:
    coupon = make_gated(2)
    # User->>API: POST /coupons/{id}/issue-async
    # U->>A: 쿠폰 발급 요청 (userId, couponId)
    # API-->>User: requestId 응답
    # A-->>U: 발급 진행중 응답 (requestId)
    request_id = document.ask(door(coupon), {"userId": 1}, user_id=1)
    # One call of Redis:
    # API->>Redis: 1. 빠른 검증 (중복/재고)
    # A->>R: 중복 발급 체크 (SISMEMBER)
    # R-->>A: 중복 여부 응답
    # Redis-->>API: 검증 완료
    # API->>Redis: 2. 재고 차감 (원자적)
    # A->>R: 재고 차감 (DECR)
    # R-->>A: 차감 성공
    # API->>Redis: 3. 발급 표시 추가
    # A->>R: 발급 기록 저장 (SADD)
    assert holders_in_redis(coupon) == {1}
    # API->>Kafka: 4. 이벤트 발행
    # A->>K: CouponIssueEvent 발행
    # Kafka-->>API: ACK
    request = document.published(REQUESTS, request_id, key_of(coupon))
    assert {name: request.body[name] for name in ("requestId", "userId", "couponId", "source")} == {
        "requestId": str(request_id),
        "userId": 1,
        "couponId": coupon.pk,
        "source": "API",
    }
    # Kafka->>Consumer: 5. 메시지 소비
    # K->>C: 이벤트 전달 (파티션 키: couponId)
    # C->>D: 중복 발급 체크 (SELECT)
    # Consumer->>DB: 6. 최종 발급 처리
    # C->>D: UserCoupon 저장 (INSERT)
    decided = document.decided(request_id)
    assert (decided.status, decided.partition, decided.offset) == ("SUCCESS", request.partition, request.offset)
    assert coupons_of(1) == [coupon.pk]
    document.when_committed(GROUP, request)
    # Consumer->>Redis: 7. 상태 업데이트
    wait_until(lambda: status_cache.load([request_id]), SECONDS, "the status is not in Redis")
    assert status_cache.load([request_id])[request_id].status == "SUCCESS"
    assert document.status(request_id, 1)["status"] == "SUCCESS"


def test_a_duplicate_and_a_sold_out_coupon_are_refused_by_redis_and_never_reach_kafka(
    document: Document, make_gated: Callable[[int], Coupon]
) -> None:
    coupon = make_gated(1)
    request_id = document.ask(door(coupon), user_id=1)
    # A-->>U: 이미 발급된 쿠폰 응답
    again = document.call("POST", door(coupon), {}, user_id=1)
    assert (again.status, again.body["code"]) == (409, "already_issued")
    # R-->>A: 차감 실패 (재고 부족)
    # A-->>U: 품절 응답
    late = document.call("POST", door(coupon), {}, user_id=2)
    assert (late.status, late.body["code"]) == (409, "sold_out")
    # Nothing was taken that had to be put back: A->>R: 재고 복원 (INCR)
    assert holders_in_redis(coupon) == {1}
    assert document.decided(request_id).status == "SUCCESS"
    assert OutboxMessage.objects.filter(key=key_of(coupon).encode()).count() == 1


def test_each_partition_has_one_of_the_three_consumers(document: Document) -> None:
    document.when_shared(GROUP, [1] * 3)


@pytest.mark.parametrize(
    "requested_at",
    ["2025-08-29T12:00:05.123456789", [2025, 8, 29, 12, 0, 5, 123456789]],
    ids=["as text", "as an array"],
)
def test_a_message_of_the_documents_own_class_is_decided_once(
    requested_at: object, document: Document, make_gated: Callable[[int], Coupon]
) -> None:
    coupon = make_gated(5)
    event = java_event(coupon, 7, requested_at)
    # The second delivery is skipped: the request is known by its requestId.
    produce(REQUESTS, [event, event], key=key_of(coupon).encode(), headers=JAVA_HEADERS)
    decided = document.decided(UUID(json.loads(event)["requestId"]))
    assert (decided.status, decided.user_id, decided.coupon_id) == ("SUCCESS", 7, coupon.pk)
    assert decided.requested_at is not None
    assert decided.requested_at.isoformat() == "2025-08-29T03:00:05.123456+00:00"
    last = document.reader.find(REQUESTS, lambda record: record.offset == decided.offset + 1, "the second delivery")
    document.when_committed(GROUP, last)
    coupon.refresh_from_db()
    assert (coupon.issued, coupons_of(7).count(coupon.pk)) == (1, 1)


def test_a_poll_takes_a_hundred_messages(document: Document, make_gated: Callable[[int], Coupon]) -> None:
    coupon = make_gated(1000)
    events = [java_event(coupon, user_id, "2025-08-29T12:00", source="BATCH") for user_id in range(1000, 1250)]
    issuer = document.service.processes["issuer"]
    issuer.send_signal(signal.SIGSTOP)
    try:
        produce(REQUESTS, events, key=key_of(coupon).encode(), headers=JAVA_HEADERS)
    finally:
        issuer.send_signal(signal.SIGCONT)
    rows = IssueRequest.objects.filter(coupon=coupon, status="SUCCESS")
    wait_until(lambda: rows.count() == len(events), SECONDS, "not everything is decided")
    with connection.cursor() as cursor:
        # A batch is a transaction.
        cursor.execute("SELECT count(*) FROM coupons_issuerequest WHERE coupon_id = %s GROUP BY xmin", [coupon.pk])
        assert max(count for (count,) in cursor.fetchall()) == 100


def test_the_flag_divides_users_between_the_worker_and_the_consumer_and_no_unit_is_issued_twice(
    document: Document, make_gated: Callable[[int], Coupon]
) -> None:
    coupon = make_gated(30)
    RolloutChange.objects.create(flag=f"{RolloutChange.ONE_COUPON}{coupon.coupon_type}", percent=50)
    replies = [document.call("POST", door(coupon), {}, user_id=user_id) for user_id in range(1, 41)]
    assert Counter(reply.status for reply in replies) == {202: 30, 409: 10}
    rows = IssueRequest.objects.filter(coupon=coupon)
    wait_until(lambda: rows.count() == 30, SECONDS, "not everything is decided")
    assert set(rows.values_list("status", flat=True)) == {"SUCCESS"}
    by_worker = rows.filter(partition=-1).count()
    assert 0 < by_worker < 30
    assert OutboxMessage.objects.filter(topic=REQUESTS, key=key_of(coupon).encode()).count() == 30 - by_worker
    coupon.refresh_from_db()
    assert coupon.issued == 30


def test_after_three_tries_the_message_is_on_the_dlt_the_unit_is_given_back_and_the_administrator_knows(
    document: Document, administrator: Provider, make_gated: Callable[[int], Coupon]
) -> None:
    coupon = make_gated(1)
    with failing_for(13):
        request_id = document.ask(door(coupon), user_id=13)
        request = document.published(REQUESTS, request_id, key_of(coupon))
        assert document.call("POST", door(coupon), {}, user_id=14).body["code"] == "sold_out"
        # Note over C: after three tries, a second apart
        decided = document.decided(request_id)
        count, seconds = tries()
    assert count == 3
    assert seconds >= 2
    # updateRequestStatus(requestId, "FAILED", message)
    assert (decided.status, decided.reason) == ("FAILED", "ERROR")
    assert document.status(request_id, 13)["status"] == "FAILED"
    # C->>K: DLT로 메시지 이동 (coupon-issue.DLT)
    letter = document.published(DLT, request_id, key_of(coupon))
    assert letter.body == request.body
    assert letter.headers["x-original-topic"] == prefixed(REQUESTS)
    assert (letter.headers["x-original-offset"], letter.headers["x-consumer-group"]) == (
        str(request.offset),
        prefixed(GROUP),
    )
    document.when_committed(GROUP, request)
    # rollbackRedisState(userId, couponId): the next user gets the unit.
    wait_until(lambda: not holders_in_redis(coupon), SECONDS, "the unit is not given back")
    next_id = document.ask(door(coupon), user_id=14)
    assert document.decided(next_id).status == "SUCCESS"
    # notifyAdministrator(event, error)
    wait_until(lambda: alerts(administrator)["request-dead-lettered"], SECONDS, "the administrator was not told")


def test_more_than_ten_messages_on_the_dlt_are_an_alarm_of_its_consumer(
    document: Document, administrator: Provider
) -> None:
    produce(REQUESTS, [b"{"] * 11, key=b"coupon:1")
    wait_until(lambda: DeadLetter.objects.filter(payload=b"{").count() == 11, SECONDS, "no dead letters")
    # Note over K: DltMonitoringConsumer sends the notification.
    wait_until(lambda: alerts(administrator)["dead-letters"] == 1, SECONDS, "no alarm")
    wait_until(
        lambda: sum(committed_offsets(prefixed(DLT_MONITOR), DLT).values()) >= 11, SECONDS, "the DLT is not read"
    )


def test_nothing_of_this_breaks_an_invariant(document: Document) -> None:
    assert {name: lines for name, lines in invariants.violations() if lines} == {}


def test_auto_commit_is_refused_and_told() -> None:
    settings = {"fetch.min.bytes": 1024, "fetch.max.wait.ms": 100, "enable.auto.commit": True}
    assert declined("001", KAFKA_CONSUMER_CONFIG=json.dumps(settings)) == (
        "KAFKA_CONSUMER_CONFIG: enable.auto.commit is fixed for safety, remove it"
    )
