"""A group of requests: what it costs, and what becomes of the others when one of them cannot be handled."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from django.db import DataError, OperationalError, connection
from django.test.utils import CaptureQueriesContext

from coupons.admission import ADMISSIONS
from coupons.coupon_cache import coupon_cache
from coupons.issuance import accept_group
from coupons.issuance.accept import accepted, incoming_request
from coupons.issuance.accept_group import IncomingRequest
from coupons.messages import ISSUE_REQUESTED
from coupons.models import Coupon, Reservation
from kafka_bridge.models import OutboxMessage
from kafka_bridge.outbox.writing import OutboxRow, insert_new_rows

from .conftest import assert_invariants, gate_of, issue

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.parametrize("admission", ["queue", "gate", "reserve"]),
]


def requests_of(coupon: Coupon, *user_ids: int) -> list[IncomingRequest]:
    cached = coupon_cache.get(coupon.id)
    assert cached is not None
    return [
        incoming_request(cached, user_id=user_id, caller_id=1, idempotency_key=None, traceparent="")
        for user_id in user_ids
    ]


def test_a_group_costs_one_insert(admission: str, make_coupon: Callable[..., Coupon]) -> None:
    coupon = make_coupon(admission=admission, total_quantity=100)
    group = requests_of(coupon, *range(1, 51))
    with CaptureQueriesContext(connection) as queries:
        accept_group.accept_group(ADMISSIONS[admission], group)
    inserts = [query["sql"] for query in queries if "INSERT INTO kafka_bridge_outboxmessage" in query["sql"]]
    assert len(inserts) == 1
    assert {accepted(item).user_id for item in group} == set(range(1, 51))


def test_a_request_that_cannot_be_handled_fails_alone(admission: str, make_coupon: Callable[..., Coupon]) -> None:
    coupon = make_coupon(admission=admission, total_quantity=100)
    group = requests_of(coupon, 1, 2, 3, 4, 5)
    # As a fault in the row of one request: its trace cannot be stored.
    group[2].traceparent = "\x00"
    accept_group.accept_group(ADMISSIONS[admission], group)
    assert [accepted(item).user_id for item in (*group[:2], *group[3:])] == [1, 2, 4, 5]
    with pytest.raises((DataError, ValueError)):
        accepted(group[2])
    assert OutboxMessage.objects.filter(event_type=ISSUE_REQUESTED).count() == 4
    if admission != "queue":
        assert Reservation.objects.count() == 4
    if admission == "gate":
        assert gate_of(coupon) == ({1, 2, 4, 5}, {1, 2, 4, 5})
    issue()
    assert_invariants()


def test_an_outage_concerns_the_whole_group(
    admission: str, make_coupon: Callable[..., Coupon], monkeypatch: pytest.MonkeyPatch
) -> None:
    coupon = make_coupon(admission=admission, total_quantity=100)
    calls: list[object] = []

    def fail(rows: object) -> list[bool]:
        calls.append(rows)
        raise OperationalError("server closed the connection unexpectedly")

    group = requests_of(coupon, 1, 2, 3, 4)
    with monkeypatch.context() as patch:
        patch.setattr(accept_group, "insert_new_rows", fail)
        with pytest.raises(OperationalError):
            accept_group.accept_group(ADMISSIONS[admission], group)
    assert len(calls) == 1
    assert not OutboxMessage.objects.filter(event_type=ISSUE_REQUESTED).exists()
    accept_group.accept_group(ADMISSIONS[admission], requests_of(coupon, 1, 2, 3, 4))
    issue()
    assert_invariants()


def test_an_outage_after_a_split_concerns_the_half_that_it_met(
    admission: str, make_coupon: Callable[..., Coupon], monkeypatch: pytest.MonkeyPatch
) -> None:
    coupon = make_coupon(admission=admission, total_quantity=100)
    group = requests_of(coupon, 1, 2, 3, 4)
    group[3].traceparent = "\x00"
    calls: list[object] = []

    def fail_in_the_second_half(rows: Sequence[OutboxRow]) -> list[bool]:
        calls.append(rows)
        if len(calls) == 3:
            raise OperationalError("server closed the connection unexpectedly")
        return insert_new_rows(rows)

    with monkeypatch.context() as patch:
        patch.setattr(accept_group, "insert_new_rows", fail_in_the_second_half)
        accept_group.accept_group(ADMISSIONS[admission], group)
    assert [accepted(item).user_id for item in group[:2]] == [1, 2]
    for item in group[2:]:
        with pytest.raises(OperationalError):
            accepted(item)
    assert OutboxMessage.objects.filter(event_type=ISSUE_REQUESTED).count() == 2
    issue()
    assert_invariants()
