"""Requests as the Java class of a producer writes them are decided like any other."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from pytest_django import Settings

from common.processes.lifecycle import StopFlag
from coupons.consumer_groups import ISSUE
from coupons.models import Coupon, IssueRequest
from kafka_bridge.consuming.batch import BatchHandler
from kafka_bridge.registry import ReceivedMessage
from tests.support.messages import message, request_body

pytestmark = pytest.mark.django_db(transaction=True)

SECOND = datetime(2025, 8, 29, 3, 0, 5, tzinfo=UTC)


def handle(received: ReceivedMessage) -> None:
    BatchHandler(ISSUE).handle([received], StopFlag())


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("2025-08-29T12:00", SECOND.replace(second=0)),
        ("2025-08-29T12:00:05", SECOND),
        ("2025-08-29T12:00:05.1", SECOND.replace(microsecond=100_000)),
        ("2025-08-29T12:00:05.123456789", SECOND.replace(microsecond=123_456)),
        ([2025, 8, 29, 12, 0], SECOND.replace(second=0)),
        ([2025, 8, 29, 12, 0, 5], SECOND),
        ([2025, 8, 29, 12, 0, 5, 123_456_789], SECOND.replace(microsecond=123_456)),
    ],
)
def test_a_time_without_a_zone_is_read_in_the_business_time_zone(
    written: object, meant: datetime, make_coupon: Callable[..., Coupon], settings: Settings
) -> None:
    settings.BUSINESS_TIME_ZONE = "Asia/Seoul"
    body = request_body(make_coupon(), 1, requestedAt=written, admission=..., sequence=..., couponType=..., memo="x")
    handle(message(body))
    decided = IssueRequest.objects.get()
    assert (str(decided.request_id), decided.status, decided.requested_at) == (body["requestId"], "SUCCESS", meant)


@pytest.mark.parametrize(
    "written",
    [
        "2025-08-29", "2025-08-29 12:00", "2025-08-29T12", "2025-08-29T25:00", "2025-02-30T12:00",
        "2025-08-29T12:00.5", "2025-08-29T12:00:05.1234567890", "9999-12-31T23:59", [], [2025, 8, 29, 12],
        [2025, 8, 29, 12, 0, 5, 0, 0], [2025, 13, 1, 0, 0], [2025, 8, 29, 12, 0, 60], [2025, 8, 29, 12, 0, 5, -1],
        [2025, 8, 29, 12, 0, 5, 10**9], [10**30, 8, 29, 12, 0], ["2025", 8, 29, 12, 0], [2025, 8, 29, 12, True],
        [2025, 8, 29, 12, 0.5], {"year": 2025}, 1756436405,
    ],
)  # fmt: skip
def test_a_time_that_java_does_not_write_is_a_dead_letter(written: Any, make_coupon: Callable[..., Coupon]) -> None:
    handle(message(request_body(make_coupon(), 1, requestedAt=written)))
    decided = IssueRequest.objects.get()
    assert (decided.status, decided.reason) == ("FAILED", "ERROR")
