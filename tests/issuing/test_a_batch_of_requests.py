"""What one batch does to coupons, requests and the outbox."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from uuid import UUID

import pytest
from django_redis import get_redis_connection
from msgspec.structs import replace

from common.processes.lifecycle import StopFlag
from coupons.consumer_groups import ISSUE
from coupons.models import Coupon, IssueRequest, UserCoupon
from coupons.selectors import request_status
from kafka_bridge.consuming.batch import BatchHandler
from kafka_bridge.models import OutboxMessage
from kafka_bridge.registry import ReceivedMessage
from tests.support.messages import message, request_body, request_id, requests

pytestmark = pytest.mark.django_db(transaction=True)


def handle(batch: list[ReceivedMessage]) -> None:
    BatchHandler(ISSUE).handle(batch, StopFlag())


def answers(batch: list[ReceivedMessage]) -> list[tuple[str, str | None]]:
    rows = {row.request_id: (row.status, row.reason) for row in IssueRequest.objects.all()}
    return [rows[request_id(item)] for item in batch]


def test_every_request_gets_its_answer_and_the_stock_is_counted(make_coupon: Callable[..., Coupon]) -> None:
    coupon = make_coupon(total_quantity=2)
    batch = requests(coupon, [1, 2, 3])

    handle(batch)

    assert answers(batch) == [("SUCCESS", None), ("SUCCESS", None), ("FAILED", "SOLD_OUT")]
    coupon.refresh_from_db()
    assert (coupon.issued, coupon.remaining) == (2, 0)
    assert set(UserCoupon.objects.values_list("user_id", flat=True)) == {1, 2}
    assert list(IssueRequest.objects.order_by("offset").values_list("remaining", flat=True)) == [1, 0, 0]


def test_a_result_keeps_when_its_request_was_published(make_coupon: Callable[..., Coupon]) -> None:
    coupon = make_coupon(total_quantity=1)
    body = request_body(coupon, 1)
    times = [1_767_225_600_123, 1_767_225_600_124, 1_767_225_600_125]
    won, lost, unreadable = [
        message(body | {"requestId": str(UUID(int=number))}, timestamp=time) for number, time in enumerate(times, 1)
    ]
    handle([won, lost, replace(unreadable, value=(unreadable.value or b"").replace(b"API", b"MAGIC"))])
    kept = {row.request_id: row.published_at for row in IssueRequest.objects.all()}
    assert [kept[request_id(item)] for item in (won, lost, unreadable)] == [
        datetime(2026, 1, 1, microsecond=1000 * milliseconds, tzinfo=UTC) for milliseconds in (123, 124, 125)
    ]


@pytest.mark.parametrize("timestamp", [-1, 0, -(2**63), 2**63 - 1, 253_402_300_800_000])
def test_a_timestamp_that_is_no_time_of_publishing_is_not_kept_and_hinders_nothing(
    timestamp: int, make_coupon: Callable[..., Coupon]
) -> None:
    coupon = make_coupon()
    issued = message(request_body(coupon, 1), timestamp=timestamp)
    dead_lettered = message(request_body(coupon, 2, source="MAGIC"), timestamp=timestamp)
    handle([issued, dead_lettered])
    assert answers([issued, dead_lettered]) == [("SUCCESS", None), ("FAILED", "ERROR")]
    assert not IssueRequest.objects.exclude(published_at=None).exists()


def test_the_same_user_twice_in_one_batch_gets_one_coupon(make_coupon: Callable[..., Coupon]) -> None:
    batch = requests(make_coupon(), [1, 1])
    handle(batch)
    assert answers(batch) == [("SUCCESS", None), ("FAILED", "ALREADY_ISSUED")]


def test_the_same_user_in_two_batches_gets_one_coupon(make_coupon: Callable[..., Coupon]) -> None:
    first, second = requests(make_coupon(), [1, 1])
    handle([first])
    handle([second])
    assert answers([first, second]) == [("SUCCESS", None), ("FAILED", "ALREADY_ISSUED")]


def test_a_batch_that_comes_again_changes_nothing_even_after_a_restock(make_coupon: Callable[..., Coupon]) -> None:
    coupon = make_coupon(total_quantity=1)
    batch = requests(coupon, [1, 2])
    handle(batch)
    Coupon.objects.filter(id=coupon.id).update(total_quantity=5)

    handle(batch)

    assert answers(batch) == [("SUCCESS", None), ("FAILED", "SOLD_OUT")]
    assert OutboxMessage.objects.count() == 2
    assert UserCoupon.objects.count() == 1


def test_results_are_told_in_the_order_of_the_requests(make_coupon: Callable[..., Coupon]) -> None:
    batch = requests(make_coupon(total_quantity=2), [3, 1, 2])
    handle(batch)
    bodies = [json.loads(bytes(row.payload or b"")) for row in OutboxMessage.objects.order_by("id")]
    assert [body["requestId"] for body in bodies] == [str(request_id(item)) for item in batch]
    assert [(body["status"], body["reason"]) for body in bodies] == answers(batch)
    assert bodies[0]["userCouponId"] == UserCoupon.objects.get(user_id=3).id


def test_results_are_read_from_redis_and_without_redis_from_postgresql(
    make_coupon: Callable[..., Coupon], redis_flushed: None
) -> None:
    batch = requests(make_coupon(), [1])
    handle(batch)
    from_redis = request_status(request_id(batch[0]))
    get_redis_connection("default").flushdb()
    from_postgresql = request_status(request_id(batch[0]))
    assert from_redis is not None
    assert from_redis.status == "SUCCESS"
    assert from_redis == from_postgresql


def test_unknown_coupons_and_coupons_out_of_their_window_end_requests_of_others(
    make_coupon: Callable[..., Coupon],
) -> None:
    coupon = make_coupon(opens_at="2026-06-01T00:00:00Z")
    batch = [
        message(request_body(coupon, 1, requestedAt="2026-05-31T23:59:59Z")),
        message(request_body(coupon, 2, requestedAt="2026-06-01T00:00:00Z")),
        message(request_body(coupon, 3, couponId=coupon.id + 1, couponType="NO_SUCH_COUPON")),
    ]
    handle(batch)
    assert answers(batch) == [("FAILED", "NOT_OPEN"), ("SUCCESS", None), ("FAILED", "UNKNOWN_COUPON")]


def test_a_message_may_name_the_coupon_by_id_or_by_type_alone(make_coupon: Callable[..., Coupon]) -> None:
    coupon = make_coupon()
    batch = [message(request_body(coupon, 1, couponId=...)), message(request_body(coupon, 2, couponType=...))]
    handle(batch)
    assert answers(batch) == [("SUCCESS", None)] * 2
    assert set(IssueRequest.objects.values_list("coupon_id", "coupon_type")) == {(coupon.id, coupon.coupon_type)}
