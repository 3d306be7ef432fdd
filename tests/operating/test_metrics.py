"""What Prometheus finds at ``/metrics``."""

from collections.abc import Callable
from typing import Any

import pytest
from django.test import Client

from common.processes.lifecycle import StopFlag
from coupons.consumer_groups import ISSUE
from coupons.models import Coupon
from kafka_bridge.consuming.batch import BatchHandler
from tests.support.messages import message, requests
from tests.support.outbox import publish_orders

pytestmark = pytest.mark.django_db(transaction=True)


def figures(client: Client) -> dict[str, float]:
    text = client.get("/metrics").content.decode()
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, value in lines}


@pytest.fixture
def grown(client: Client) -> Callable[[], dict[str, float]]:
    """What has grown since the fixture was made."""
    before = figures(client)
    return lambda: {
        name: value - before.get(name, 0) for name, value in figures(client).items() if value != before.get(name, 0)
    }


def test_the_accept_api_counts_what_it_took_and_what_it_refused(
    client: Client, make_coupon: Callable[..., Coupon], token: Callable[..., dict[str, str]], grown: Any
) -> None:
    for coupon in (make_coupon(), make_coupon(paused=True)):
        client.post(f"/api/v1/coupons/{coupon.id}/issue-async", content_type="application/json", headers=token(7))
    assert grown()['issue_requests_accepted_total{source="API"}'] == 1
    assert grown()['issue_requests_refused_total{code="not_open"}'] == 1


def test_the_issuer_counts_results_by_reason_and_their_time(make_coupon: Callable[..., Coupon], grown: Any) -> None:
    batch = [*requests(make_coupon(total_quantity=1), [1, 2]), message(b"{")]
    BatchHandler(ISSUE).handle(batch, StopFlag())
    assert grown()['issue_requests_decided_total{reason="",status="SUCCESS"}'] == 1
    assert grown()['issue_requests_decided_total{reason="SOLD_OUT",status="FAILED"}'] == 1
    assert grown()["issue_time_to_result_seconds_count"] == 2
    assert grown()['dead_letters_total{group="issue"}'] == 1
    assert grown()['consumer_messages_total{group="issue"}'] == 3


def test_the_outbox_is_measured_when_somebody_asks(client: Client) -> None:
    publish_orders([1, 2, 3])
    assert figures(client)["outbox_waiting"] == 3
    assert figures(client)["outbox_age_seconds"] >= 0
