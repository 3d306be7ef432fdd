"""Conditions of many rules at once on real processes: the webhook hears of each once, and once of its end."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from uuid import UUID

import pytest
from django.db import connection
from uuid_utils.compat import uuid7

from common.postgres.clock import database_time
from coupons.consumer_groups import ISSUE
from coupons.models import Coupon, UserCoupon
from devstack import wait_until
from kafka_bridge.models import AlertNotification, DeadLetter, OutboxHold, ProcessHeartbeat
from kafka_bridge.registry import groups
from tests.operating.alarms import move_into_the_past
from tests.processes.conftest import MOMENT_SECONDS
from tests.support.factories import CouponFactory
from tests.support.kafka import consume_everything, produce, relay_everything
from tests.support.librdkafka import RawRecord, produce_raw
from tests.support.outbox import TOPIC, publish_orders
from tests.support.provider import Provider
from tests.support.service import Service, environment, kill_group

pytestmark = pytest.mark.django_db(transaction=True)

REQUESTS = "coupon-issue-request"
RESULTS = "coupon-issue-response"


@pytest.fixture
def webhook() -> Iterator[Provider]:
    """A webhook that is away."""
    webhook = Provider()
    yield webhook
    webhook.close()


@pytest.fixture
def service(transactional_db: None, topics: str, webhook: Provider, tmp_path: Path) -> Iterator[Service]:
    env = environment(
        ALERT_WEBHOOK_URL=webhook.url, ALERT_END_SECONDS="1", ALERT_LAG_SECONDS="0", ALERT_DEAD_LETTERS="1",
        ALERT_OUTBOX_SECONDS="1", ALERT_HELD_SECONDS="1", RECONCILE_PATIENCE_SECONDS="1",
    )  # fmt: skip
    service = Service(tmp_path, env)
    yield service
    service.end()


def headers(request_id: UUID) -> list[tuple[bytes, bytes]]:
    return [(b"ce_id", str(request_id).encode()), (b"ce_type", b"coupon.issue.requested.v1")]


def issued(coupon: Coupon, number: int) -> None:
    now = database_time()
    UserCoupon.objects.bulk_create(
        UserCoupon(coupon=coupon, user_id=user_id, issued_at=now) for user_id in range(1, number + 1)
    )


def kinds(phase: str) -> Counter[str]:
    """The rules of the alerts with their notifications of ``phase``, without their subjects."""
    notified = AlertNotification.objects.filter(phase=phase).values_list("alert__runbook", flat=True)
    return Counter(Path(runbook).stem for runbook in notified)


def calls(webhook: Provider, phase: str) -> Counter[str]:
    """The rules with the calls of the webhook for ``phase``, also those that came twice."""
    bodies = [json.loads(call.body) for call in webhook.calls if call.key.endswith(f":{phase}")]
    return Counter(Path(body["runbook"]).stem for body in bodies)


def when_it_is_there(found: Callable[[], Counter[str]], expected: Counter[str]) -> None:
    with suppress(TimeoutError):
        wait_until(lambda: found() >= expected, MOMENT_SECONDS, "something is missing", 0.2)
    assert expected - found() == Counter()


def test_every_condition_is_told_once_and_its_end_once_though_the_webhook_was_away(
    service: Service, webhook: Provider
) -> None:
    wrong, nearly_sold_out = CouponFactory.create(total_quantity=1), CouponFactory.create(total_quantity=20, issued=19)
    issued(nearly_sold_out, 19)
    # More than there are, which no counter can say.
    issued(wrong, 2)
    expected = Counter(
        [
            "dead-letters", "held", "lag", "nearly-sold-out", "not-reconciled", "outbox-age", "process-silent",
            "request-dead-lettered",
        ]
    )  # fmt: skip
    service.start("housekeeper")
    service.start_command("reconcile", "--repair", "--every", "1", name="reconciler")
    killed = service.start("orders")
    wait_until(ProcessHeartbeat.objects.filter(role="orders").exists, MOMENT_SECONDS, "no heartbeat")
    kill_group(killed)
    move_into_the_past("kafka_bridge_processheartbeat", ["seen_at"], 20)
    produce_raw(REQUESTS, [RawRecord(b"{", headers=headers(uuid7())) for _ in range(2)])
    consume_everything(ISSUE)
    produce(RESULTS, [b"{}"], seconds_ago=60)
    OutboxHold.objects.create(topic=TOPIC, key=b"4711", reason="wrong price")
    publish_orders([1])
    when_it_is_there(lambda: kinds("start"), expected)
    assert not webhook.calls

    webhook.up()
    # As if the pauses between the tries had gone by.
    AlertNotification.objects.update(next_try_at=database_time())
    when_it_is_there(lambda: calls(webhook, "start"), expected)

    # Everything is mended.
    consume_everything(groups()["results"])
    Coupon.objects.filter(pk=nearly_sold_out.pk).update(total_quantity=1000)
    UserCoupon.objects.filter(coupon=wrong).delete()
    DeadLetter.objects.update(closed_at=database_time(), created_at="2026-01-01T00:00:00Z")
    OutboxHold.objects.all().delete()
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM kafka_bridge_processheartbeat WHERE role = 'orders'")
    relay_everything()
    # Results that the relay has just published are messages of the lagging group too.
    consume_everything(groups()["results"])
    when_it_is_there(lambda: calls(webhook, "end"), expected)
    wait_until(lambda: not AlertNotification.objects.exists(), MOMENT_SECONDS, "notifications are left")
    keys = [call.key for call in webhook.calls]
    assert len(keys) == len(set(keys))
    phases = [Counter(key.split(":")[0] for key in keys if key.endswith(phase)) for phase in (":start", ":end")]
    assert phases[0] >= phases[1]
