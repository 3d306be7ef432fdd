"""Document 000: issuing by coupon type, over a request and a response topic. The names are those of its diagrams."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from json import dumps
from uuid import uuid4

import pytest
from django.db import transaction

from coupons.models import Coupon, IssueRequest, UserCoupon
from devstack import ManagedProcess, wait_until
from kafka_bridge.models import ProcessHeartbeat
from tests.processes.conftest import when_waiting_for_a_lock
from tests.seeds.document import SECONDS, Document, coupons_of, declined, running
from tests.support.factories import CouponFactory
from tests.support.kafka import produce
from tests.support.service import kill_group

pytestmark = pytest.mark.django_db(transaction=True)

DOOR = "/coupons/issue-async"
REQUESTS, RESPONSES = "coupon-issue-request", "coupon-issue-response"
GROUP = "coupon-issue-consumer-group"
TEN, TWENTY, FIXED = "DISCOUNT_10PERCENT", "DISCOUNT_20PERCENT", "FIXED_1000"
ISSUERS = ("issuer-1", "issuer-2", "issuer-3")


@pytest.fixture(scope="module")
def document(stores: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Document]:
    with running("000", tmp_path_factory.mktemp("000"), ["relay", *ISSUERS]) as document:
        yield document


@pytest.fixture(scope="module")
def coupons(document: Document) -> Mapping[str, Coupon]:
    """The three coupons of the document, by type."""
    return {name: CouponFactory.create(coupon_type=name, total_quantity=1000) for name in (TEN, TWENTY, FIXED)}


def holders(document: Document) -> dict[int, ManagedProcess]:
    """The process with each partition of the request topic, by the heartbeats: two with every process."""
    by_pid: dict[int, list[int]] = {}

    def look() -> bool:
        rows = ProcessHeartbeat.objects.values_list("pid", "partitions")
        by_pid.update({pid: [held["partition"] for held in partitions] for pid, partitions in rows if partitions})
        return sorted(map(len, by_pid.values())) == [2] * 3 and len({*chain(*by_pid.values())}) == 6

    wait_until(look, SECONDS, f"not two partitions with each of three processes: {by_pid}")
    processes = {process.pid: process for process in document.service.processes.values()}
    return {partition: processes[pid] for pid, partitions in by_pid.items() for partition in partitions}


def test_diagram_1_a_request_goes_from_the_door_to_the_response_topic(
    document: Document, coupons: Mapping[str, Coupon]
) -> None:
    # Client->>API: POST /coupons/issue-async
    # API->>Producer: sendCouponIssueRequest()
    # API-->>Client: 202 Accepted
    request_id = document.ask(DOOR, {"userId": 1, "couponType": TEN}, user_id=1)
    # Producer->>Topic: 메시지 전송
    request = document.published(REQUESTS, request_id, TEN)
    assert (request.body["userId"], request.body["couponType"]) == (1, TEN)
    # Topic->>Consumer: 메시지 수신
    # Consumer->>Service: issueCoupon()
    # Service->>DB: 쿠폰 발급 처리
    # DB-->>Service: 쿠폰 생성 완료
    decided = document.decided(request_id)
    assert (decided.status, decided.partition, decided.offset) == ("SUCCESS", request.partition, request.offset)
    assert coupons_of(1) == [coupons[TEN].pk]
    # Service-->>Consumer: 발급 결과
    # Consumer->>Producer: sendCouponIssueResponse()
    # Producer->>Topic: 응답 메시지 전송
    response = document.result(RESPONSES, request_id, TEN)
    assert (response.body["userId"], response.body["status"]) == (1, "SUCCESS")
    document.when_committed(GROUP, request)
    assert document.status(request_id, 1)["status"] == "SUCCESS"


def test_diagram_2_requests_for_one_type_stand_on_one_partition_and_are_handled_in_its_order(
    document: Document, coupons: Mapping[str, Coupon]
) -> None:
    # Client1->>Producer: 요청1 (DISCOUNT_10PERCENT)
    # Client2->>Producer: 요청2 (DISCOUNT_10PERCENT)
    # Client3->>Producer: 요청3 (DISCOUNT_10PERCENT)
    with ThreadPoolExecutor(3) as clients:
        asked = clients.map(lambda user: document.ask(DOOR, {"couponType": TEN}, user_id=user), (21, 22, 23))
        request_ids = list(asked)
    # Producer->>Topic: 메시지 전송
    requests = sorted(document.published(REQUESTS, request_id, TEN) for request_id in request_ids)
    assert len({request.partition for request in requests}) == 1
    # Topic->>Consumer: 순서대로 메시지 전달
    # Consumer->>Consumer: 쿠폰 발급 처리 (순차적)
    assert {document.decided(request_id).status for request_id in request_ids} == {"SUCCESS"}
    users = UserCoupon.objects.filter(user_id__in=(21, 22, 23)).order_by("id").values_list("user_id", flat=True)
    assert list(users) == [request.body["userId"] for request in requests]


def test_diagram_3_three_types_stand_on_three_partitions_and_each_has_its_own_consumer(
    document: Document, coupons: Mapping[str, Coupon]
) -> None:
    # The drawing has 0, 1 and 2; murmur2 gives no number of partitions at which the types stand there.
    partitions = {TEN: 2, TWENTY: 3, FIXED: 5}
    document.when_shared(GROUP, [1] * 6)
    assert {process.name for process in holders(document).values()} == {*ISSUERS}
    # In parallel: while the first hangs, the others go on.
    with transaction.atomic():
        assert Coupon.objects.select_for_update().get(coupon_type=TEN)
        # Client1->>Producer: 요청1 (DISCOUNT_10PERCENT)
        # Client2->>Producer: 요청2 (DISCOUNT_20PERCENT)
        # Client3->>Producer: 요청3 (FIXED_1000)
        # Producer->>Topic: 메시지 전송
        asked = {name: document.ask(DOOR, {"couponType": name}, user_id=31) for name in partitions}
        for name, partition in partitions.items():
            assert document.published(REQUESTS, asked[name], name).partition == partition
        # Topic->>Consumer2: DISCOUNT_20PERCENT 처리
        assert document.decided(asked[TWENTY]).partition == 3
        # Topic->>Consumer3: FIXED_1000 처리
        assert document.decided(asked[FIXED]).partition == 5
        assert not IssueRequest.objects.filter(request_id=asked[TEN]).exists()
    # Topic->>Consumer1: DISCOUNT_10PERCENT 처리
    assert document.decided(asked[TEN]).partition == 2


def test_a_consumer_that_dies_with_a_request_in_hand_is_replaced_and_the_request_is_decided_once(
    document: Document, coupons: Mapping[str, Coupon]
) -> None:
    holder = holders(document)[2]
    with transaction.atomic():
        assert Coupon.objects.select_for_update().get(coupon_type=TEN)
        request_id = document.ask(DOOR, {"couponType": TEN}, user_id=41)
        when_waiting_for_a_lock("consume_coupons")
        kill_group(holder)
    request = document.published(REQUESTS, request_id, TEN)
    assert document.decided(request_id).status == "SUCCESS"
    document.when_committed(GROUP, request)
    assert coupons_of(41) == [coupons[TEN].pk]
    assert document.result(RESPONSES, request_id, TEN).body["status"] == "SUCCESS"
    holder.start()


def test_a_message_of_a_java_producer_is_decided_and_the_same_message_again_changes_nothing(
    document: Document, coupons: Mapping[str, Coupon]
) -> None:
    request_id, other_id = uuid4(), uuid4()
    body = dumps({"requestId": str(request_id), "userId": 51, "couponType": FIXED}).encode()
    after = dumps({"requestId": str(other_id), "userId": 51, "couponType": FIXED}).encode()
    produce(REQUESTS, [body, body, after], key=FIXED.encode())
    first = document.result(RESPONSES, request_id, FIXED)
    last = document.result(RESPONSES, other_id, FIXED)
    assert (first.body["status"], last.body["reason"]) == ("SUCCESS", "ALREADY_ISSUED")
    assert first.offset + 1 == last.offset
    assert coupons_of(51) == [coupons[FIXED].pk]


def test_two_types_of_event_on_one_topic_cannot_have_different_numbers_of_partitions() -> None:
    routes = {
        "coupon.issue.succeeded.v1": {"topic": RESPONSES, "key": "couponType", "partitions": 6},
        "coupon.issue.failed.v1": {"topic": RESPONSES, "key": "couponType", "partitions": 3},
    }
    assert "share the topic 'coupon-issue-response' but differ in partitions" in declined(
        "000", KAFKA_ROUTES=dumps(routes)
    )
