"""The names of the seeds are a change of settings: what the processes do with them is the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient

from coupons.models import Coupon, Notification
from devstack import wait_until
from kafka_bridge.models import DeadLetter
from kafka_bridge.routes import overlay_routes
from tests.support.factories import CouponFactory
from tests.support.kafka import header, produce, read_to_end
from tests.support.published import unpublished_rows
from tests.support.service import Service, environment

pytestmark = pytest.mark.django_db(transaction=True)

SECONDS = 90.0
DEAD = {"deadLetterTopic": "DLQ-topic", "deadLetterPartitions": 3}
ROUTES: dict[str, dict[str, Any]] = {
    # 001: its topic and key. 004: a topic for winners, one for losers. 003: one dead-letter topic for all.
    "coupon.issue.requested.v1": {
        "topic": "coupon-issue-requests",
        "key": "coupon:{couponId}",
        "partitions": 3,
        **DEAD,
    },
    "coupon.issue.succeeded.v1": {"topic": "coupon-issue-succeeded", "key": "couponId", **DEAD},
    "coupon.issue.failed.v1": {"topic": "coupon-issue-failed", "key": "couponId", **DEAD},
    "order.completed.v1": {"topic": "trace-topic", **DEAD},
    "order.cancelled.v1": DEAD,
}
GROUPS = {"issue": "coupon-consumer-group"}
CONCURRENCY = {"issue": 2, "results": 2}


@pytest.fixture
def service(topics: str, settings: Any, tmp_path: Path) -> Iterator[Service]:
    service = Service(
        tmp_path,
        environment(
            KAFKA_ROUTES=json.dumps(ROUTES),
            KAFKA_GROUPS=json.dumps(GROUPS),
            CONSUMER_CONCURRENCY=json.dumps(CONCURRENCY),
        ),
    )
    assert service.run("create_topics") == 0
    keys = settings.INTERCHANGEABLE_EVENT_KEYS
    settings.KAFKA_ROUTES = overlay_routes(settings.KAFKA_ROUTES, ROUTES, interchangeable_keys=keys)
    yield service
    service.end()
    admin = AdminClient({"bootstrap.servers": settings.KAFKA_BOOTSTRAP_SERVERS})
    names = {route.topic for route in settings.KAFKA_ROUTES.values()} | {"DLQ-topic"}
    # One is there under its own name, and the fixture of the topics deletes it.
    for future in admin.delete_topics([f"{topics}{name}" for name in names - {"order-cancelled"}]).values():
        future.result()


def said(topic: str) -> set[tuple[int, str, str, bytes | None]]:
    """Of each message its user, status, type and key."""
    bodies = [(json.loads(item.value() or b""), item) for item in read_to_end(topic)]
    return {(body["userId"], body.get("status", ""), header(item, "ce_type"), item.key()) for body, item in bodies}


def test_requests_results_and_dead_letters_go_by_the_seeds_names(
    transactional_db: None, service: Service, tmp_path: Path
) -> None:
    coupon: Coupon = CouponFactory.create(total_quantity=2)
    key = str(coupon.id).encode()
    request_key = b"coupon:" + key
    produce("coupon-issue-requests", [b"{"], key=request_key)
    produce("trace-topic", [b"["])
    service.start("relay")
    service.start_command("consume_coupons", name="consumers")
    users = tmp_path / "users.csv"
    users.write_text("userId\n1\n2\n3\n")
    assert service.run("issue_batch", coupon.coupon_type, str(users)) == 0
    wait_until(lambda: Notification.objects.count() == 3, SECONDS, "not all users were notified")
    # Of orders there are four groups, but nothing to cancel.
    wait_until(lambda: DeadLetter.objects.count() == 5, SECONDS, "not everything bad is buried")
    wait_until(lambda: not unpublished_rows().exists(), SECONDS, "not all is published")

    requests = [item for item in read_to_end("coupon-issue-requests") if item.value() != b"{"]
    assert {item.key() for item in requests} == {request_key}
    assert len({item.partition() for item in requests}) == 1
    assert said("coupon-issue-succeeded") == {(user, "SUCCESS", "coupon.issue.succeeded.v1", key) for user in (1, 2)}
    assert said("coupon-issue-failed") == {(3, "FAILED", "coupon.issue.failed.v1", key)}
    letters = read_to_end("DLQ-topic")
    prefix = header(letters[0], "x-original-topic").partition("-")[0]
    assert sorted((header(item, "x-original-topic"), header(item, "x-consumer-group")) for item in letters) == [
        (f"{prefix}-coupon-issue-requests", f"{prefix}-coupon-consumer-group"),
        *(
            (f"{prefix}-trace-topic", f"{prefix}-order-{name}-group")
            for name in ("data-platform", "monitoring", "notification", "ranking")
        ),
    ]
