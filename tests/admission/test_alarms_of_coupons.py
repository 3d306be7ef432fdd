"""Alarms about coupons: one that is nearly sold out, and requests that ended by a dead letter."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from django.db import connection
from pytest_django import Settings

from common.postgres.clock import database_time
from coupons import alarms
from coupons.alarms import NEARLY_SOLD_OUT, REQUEST_DEAD_LETTERED, SoldShare, judge_dead_lettered
from coupons.consumer_groups import ISSUE
from coupons.issuance.finish import GATE_ADMITTED_REFUSED
from coupons.models import Coupon, IssueRequest
from kafka_bridge.models import DeadLetter, OutboxMessage
from kafka_bridge.operating.evaluation import AlertEvaluator
from tests.operating.alarms import evaluator_of, move_into_the_past, open_now, open_rules
from tests.support.kafka import consume_everything, relay_everything
from tests.support.messages import message
from tests.support.plans import queries_of, reads_of

from .conftest import accept, issue
from .workers import work

pytestmark = pytest.mark.django_db(transaction=True)

MakeCoupon = Callable[..., Coupon]


@pytest.fixture(autouse=True)
def _alerts_end_at_once(settings: Settings) -> None:
    settings.ALERT_END_SECONDS = 0


# Nearly sold out


@pytest.fixture
def sold() -> AlertEvaluator:
    return evaluator_of(NEARLY_SOLD_OUT, SoldShare())


def set_issued(coupon: Coupon, issued: int) -> None:
    Coupon.objects.filter(pk=coupon.pk).update(issued=issued)


def test_a_coupon_of_which_little_is_left_opens_an_alert(sold: AlertEvaluator, make_coupon: MakeCoupon) -> None:
    coupon = make_coupon(total_quantity=20)
    for user_id in range(1, 19):
        accept(coupon, user_id)
    issue()
    sold.tick()
    assert open_rules() == []
    accept(coupon, 19)
    issue()
    sold.tick()
    sold.tick()
    assert open_now() == [(f"nearly-sold-out-{coupon.coupon_type}", f"coupon {coupon.coupon_type}: 1 of 20 are left")]


def test_a_restock_ends_the_alert(sold: AlertEvaluator, make_coupon: MakeCoupon) -> None:
    coupon = make_coupon(total_quantity=100, issued=96)
    sold.tick()
    assert len(open_rules()) == 1
    Coupon.objects.filter(pk=coupon.pk).update(total_quantity=1000)
    sold.tick()
    assert open_rules() == []


def test_a_coupon_that_sells_out_between_two_looks_opens_an_alert_which_ends(
    sold: AlertEvaluator, make_coupon: MakeCoupon, monkeypatch: pytest.MonkeyPatch
) -> None:
    coupon = make_coupon(total_quantity=100)
    sold.tick()
    set_issued(coupon, 100)
    sold.tick()
    sold.tick()
    assert open_now() == [(f"nearly-sold-out-{coupon.coupon_type}", f"coupon {coupon.coupon_type}: sold out")]
    monkeypatch.setattr(alarms, "SOLD_OUT_FOR", timedelta())
    sold.tick()
    assert open_rules() == []
    monkeypatch.undo()
    sold.tick()
    assert open_rules() == []


def test_a_coupon_that_was_sold_out_long_ago_opens_no_alert(
    sold: AlertEvaluator, make_coupon: MakeCoupon, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_coupon(total_quantity=100, issued=100)
    sold.tick()
    assert open_rules() == []
    # Nor if this process saw it with stock, and another judged for a while.
    coupon = make_coupon(total_quantity=100)
    sold.tick()
    set_issued(coupon, 100)
    monkeypatch.setattr(alarms, "_LONGEST_GAP", 0.0)
    sold.tick()
    assert open_rules() == []


@pytest.mark.parametrize("state", ["paused", "closed", "scheduled"])
def test_a_coupon_that_is_not_open_opens_no_alert(state: str, sold: AlertEvaluator, make_coupon: MakeCoupon) -> None:
    now = database_time()
    fields: dict[str, dict[str, Any]] = {
        "paused": {"paused": True},
        "closed": {"closes_at": now - timedelta(hours=1)},
        "scheduled": {"opens_at": now + timedelta(hours=1)},
    }
    coupon = make_coupon(total_quantity=100, issued=99)
    sold.tick()
    assert len(open_rules()) == 1
    Coupon.objects.filter(pk=coupon.pk).update(**fields[state])
    sold.tick()
    assert open_rules() == []


def test_the_share_that_counts_as_nearly_sold_out_is_a_setting(
    sold: AlertEvaluator, make_coupon: MakeCoupon, settings: Settings
) -> None:
    make_coupon(total_quantity=100, issued=50)
    settings.ALERT_SOLD_PERCENT = 50
    sold.tick()
    assert len(open_rules()) == 1
    settings.ALERT_SOLD_PERCENT = 0
    sold.tick()
    assert open_rules() == []


# Requests that ended by a dead letter


@pytest.fixture
def dead_lettered() -> AlertEvaluator:
    return evaluator_of(REQUEST_DEAD_LETTERED, judge_dead_lettered)


def spoil(request_id: UUID) -> None:
    """No consumer can read the request."""
    OutboxMessage.objects.filter(event_id=request_id).update(payload=b"{")


def assert_alert(evaluator: AlertEvaluator, request_id: UUID) -> None:
    """The alert names the request, is one, and ends ten minutes later."""
    assert IssueRequest.objects.get(request_id=request_id).reason == "ERROR"
    evaluator.tick()
    evaluator.tick()
    # With a gate there is also the alert on what it had admitted.
    assert [alert for alert in open_now() if alert[0] != GATE_ADMITTED_REFUSED.name] == [
        (
            "request-dead-lettered",
            f"1 request of the last 10 minutes ended FAILED with ERROR by a dead letter, one of them {request_id}",
        )
    ]
    move_into_the_past("kafka_bridge_deadletter", ["created_at"], 601)
    evaluator.tick()
    assert "request-dead-lettered" not in open_rules()


@pytest.mark.usefixtures("topics")
@pytest.mark.parametrize("admission", ["queue", "gate", "reserve"])
def test_a_request_that_the_issuer_cannot_read_opens_an_alert(
    admission: str, dead_lettered: AlertEvaluator, make_coupon: MakeCoupon
) -> None:
    accepted = accept(make_coupon(admission=admission), 1)
    dead_lettered.tick()
    assert open_rules() == []
    spoil(accepted.request_id)
    relay_everything()
    consume_everything(ISSUE)
    assert_alert(dead_lettered, accepted.request_id)


@pytest.mark.usefixtures("everybody")
def test_a_request_that_the_issue_worker_cannot_read_opens_an_alert(
    dead_lettered: AlertEvaluator, make_coupon: MakeCoupon
) -> None:
    accepted = accept(make_coupon(admission="gate"), 1)
    spoil(accepted.request_id)
    work()
    assert_alert(dead_lettered, accepted.request_id)


def test_dead_letters_without_a_request_open_no_alert(dead_lettered: AlertEvaluator, make_coupon: MakeCoupon) -> None:
    accepted = accept(make_coupon(), 1)
    issue()
    # A decided request keeps its result; a message without an id is no request.
    headers = (("ce_id", str(accepted.request_id).encode()), ("ce_type", b"coupon.issue.requested.v1"))
    issue([message(b"{", headers=headers), message(b"{")])
    assert DeadLetter.objects.count() == 2
    dead_lettered.tick()
    assert open_rules() == []


def test_the_newest_of_many_dead_letters_are_read_by_index() -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            """
            INSERT INTO kafka_bridge_deadletter (consumer_group, topic, partition, "offset", message_timestamp,
                                                 event_type, event_id, headers, error_class, error_message)
            SELECT 'issue', 't', 0, n, 0, 'e', lpad(to_hex(n), 32, '0')::uuid, '[]', 'E', ''
            FROM generate_series(1, 20000) n;
            INSERT INTO coupons_issuerequest (request_id, coupon_type, status, reason, source, processed_at, topic,
                                              partition, "offset")
            SELECT lpad(to_hex(n), 32, '0')::uuid, '', 'FAILED', 'ERROR', '', statement_timestamp(), 't', 0, n
            FROM generate_series(1, 20000) n;
            ANALYZE kafka_bridge_deadletter, coupons_issuerequest;
            """
        )
    tables = {"kafka_bridge_deadletter", "coupons_issuerequest"}
    reads = reads_of(queries_of(lambda: list(judge_dead_lettered())), tables)
    assert {read.table for read in reads} == tables
    for read in reads:
        assert read.node in ("Index Scan", "Index Only Scan", "Bitmap Heap Scan"), read
        assert read.rows <= 1000, read


def test_how_long_a_dead_lettered_request_counts_is_a_setting(
    dead_lettered: AlertEvaluator, make_coupon: MakeCoupon, settings: Settings
) -> None:
    accepted = accept(make_coupon(), 1)
    headers = (("ce_id", str(accepted.request_id).encode()), ("ce_type", b"coupon.issue.requested.v1"))
    issue([message(b"{", headers=headers)])
    settings.ALERT_REQUEST_DEAD_LETTERED_MINUTES = 0
    dead_lettered.tick()
    assert open_rules() == []
