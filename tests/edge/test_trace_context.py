"""W3C Trace Context: which traces go on, from a call and from a message, and which begin anew."""

from __future__ import annotations

import re
from typing import Any

import pytest

from coupons.messages import read_issue_task
from coupons.models import Coupon
from kafka_bridge.models import OutboxMessage
from tests.support.messages import message, request_body

from .conftest import Call

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GOOD = f"00-{TRACE}-{PARENT}-01"

PASSED_ON = {
    GOOD: GOOD,
    f"00-{TRACE}-{PARENT}-00": f"00-{TRACE}-{PARENT}-00",
    # Of a later version the known part, as version 00 writes it.
    f"01-{TRACE}-{PARENT}-01": GOOD,
    f"cc-{TRACE}-{PARENT}-01-what-the-future-will-be-like": GOOD,
    f"cc-{TRACE}-{PARENT}-01-": GOOD,
    f"fe-{TRACE}-{PARENT}-fe": f"00-{TRACE}-{PARENT}-00",
}
BEGUN_ANEW = [
    "",
    f"00-{'0' * 32}-{PARENT}-01",
    f"00-{TRACE}-{'0' * 16}-01",
    f"01-{'0' * 32}-{'0' * 16}-01",
    f"ff-{TRACE}-{PARENT}-01",
    f"00-{TRACE.upper()}-{PARENT}-01",
    f"00-{TRACE}-{PARENT.upper()}-01",
    f"CC-{TRACE}-{PARENT}-01",
    f"00-{TRACE}-{PARENT}-0A",
    f"00-{TRACE}-{PARENT}-01-more",
    f"00-{TRACE}-{PARENT}-01-",
    f"cc-{TRACE}-{PARENT}-01.what",
    f"00-{TRACE[:-1]}-{PARENT}-01",
    f"00-{TRACE}-{PARENT}",
    f"00_{TRACE}_{PARENT}_01",
    f"{GOOD},{GOOD}",
    f"{GOOD}\n",
    "é" * 55,
]


def assert_new(trace: str) -> None:
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-01", trace)
    assert TRACE not in trace
    assert "0" * 16 not in trace


def published(call: Call, coupon: Coupon, traceparent: str) -> str:
    """The trace context of the event that a call with this header published."""
    path = f"/api/v1/coupons/{coupon.pk}/issue-async"
    assert call("POST", path, HTTP_TRACEPARENT=traceparent).status_code == 202
    return OutboxMessage.objects.get().traceparent


@pytest.mark.parametrize(("sent", "expected"), PASSED_ON.items())
def test_the_trace_of_a_call_goes_on(coupon: Coupon, call: Call, sent: str, expected: str) -> None:
    assert published(call, coupon, sent) == expected


@pytest.mark.parametrize("sent", BEGUN_ANEW)
def test_a_call_without_a_valid_trace_begins_one(coupon: Coupon, call: Call, sent: str) -> None:
    assert_new(published(call, coupon, sent))


def carried(coupon: Coupon, value: bytes) -> str:
    """The trace context that a consumer takes from a message with this header."""
    received: Any = message(request_body(coupon, 7), headers=(("traceparent", value),))
    return read_issue_task(received).traceparent


@pytest.mark.parametrize(("sent", "expected"), PASSED_ON.items())
def test_the_trace_of_a_message_goes_on(coupon: Coupon, sent: str, expected: str) -> None:
    assert carried(coupon, sent.encode()) == expected


@pytest.mark.parametrize("sent", [*(text.encode() for text in BEGUN_ANEW), b"\xff" * 55])
def test_a_message_without_a_valid_trace_begins_one(coupon: Coupon, sent: bytes) -> None:
    assert_new(carried(coupon, sent))
