"""Consumer processes of effects that share an id: one killed between two effects, and one of several."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from uuid_utils.compat import uuid7

from devstack import wait_until
from kafka_bridge.client import group_lag
from kafka_bridge.models import DeadLetter, ProcessedEvent
from kafka_bridge.registry import prefixed
from orders.models import OrderMinute, StoredOrder
from tests.effects.cast import completed_body
from tests.support.kafka import produce
from tests.support.provider import HANG, Answer, Call, Provider
from tests.support.service import Service, environment

pytestmark = pytest.mark.django_db(transaction=True)

SHARED = "order-consumer-group"
EFFECTS = ("notification", "data-platform", "monitoring")
SECONDS = 60.0


@pytest.fixture
def platform() -> Iterator[Provider]:
    platform = Provider()
    platform.up()
    yield platform
    platform.close()


@pytest.fixture
def service(topics: str, alimtalk: Provider, platform: Provider, tmp_path: Path) -> Iterator[Service]:
    env = environment(
        KAFKA_GROUPS=json.dumps(dict.fromkeys(EFFECTS, SHARED)),
        CONSUMER_CONCURRENCY='{"data-platform": 2}',
        ALIMTALK_URL=alimtalk.url,
        DATA_PLATFORM_URL=platform.url,
        HTTP_TIMEOUT_SECONDS="30",
    )
    service = Service(tmp_path, env)
    yield service
    platform.release()
    service.end()


def order(order_id: int) -> None:
    """Put the event of a paid order on its topic, under its key."""
    event = {"ce_id": str(uuid7()).encode(), "ce_type": b"order.completed.v1"}
    produce(
        "order-completed", [json.dumps(completed_body(order_id)).encode()], key=str(order_id).encode(), headers=event
    )


def known() -> dict[str, int]:
    return {effect: ProcessedEvent.objects.filter(consumer_group=effect).count() for effect in EFFECTS}


def test_a_kill_between_two_effects_repeats_none_and_naming_one_of_them_runs_all(
    service: Service, alimtalk: Provider, platform: Provider, tmp_path: Path
) -> None:
    platform.answer = lambda call: HANG
    order(1)
    effects = service.start_command("consume_coupons", "--group", "monitoring", name="effects")
    wait_until(lambda: len(platform.calls) == 1, SECONDS, "the second effect is not reached")
    assert known() == {"notification": 1, "data-platform": 0, "monitoring": 0}
    effects.kill()
    platform.answer = lambda call: 200
    effects.start()
    wait_until(lambda: all(known().values()), SECONDS, "not every effect has the order")
    topic = prefixed("order-completed")
    wait_until(lambda: group_lag(prefixed(SHARED), [topic]) == 0, SECONDS, "the offset does not follow")

    assert len(alimtalk.calls) == 1
    assert len({call.key for call in platform.calls}) == 1
    assert StoredOrder.objects.count() == OrderMinute.objects.get().completed == 1
    assert not DeadLetter.objects.exists()
    log = tmp_path / "effects.log"
    assert "notification, data-platform, monitoring run as one subscription" in log.read_text()
    # The six partitions of both topics are shared by as many consumers as the greatest of their numbers says.
    wait_until(lambda: f"{SHARED}: 3 partitions assigned" in log.read_text(), SECONDS, "it has not two consumers")


def test_three_instances_of_one_id_share_its_partitions_and_a_kill_repeats_and_loses_nothing(
    service: Service, alimtalk: Provider, platform: Provider
) -> None:
    orders = 60
    platform.answer = take_a_moment
    for order_id in range(1, orders + 1):
        order(order_id)
    for number in range(3):
        service.start_command("consume_coupons", "--group", "notification", name=f"effects-{number}")
    wait_until(lambda: known()["data-platform"] >= 5, SECONDS, "no effect begins")
    service.processes["effects-1"].kill()
    assert known()["monitoring"] < orders
    wait_until(lambda: set(known().values()) == {orders}, SECONDS, f"of {orders} orders the effects have {known()}")
    topic = prefixed("order-completed")
    wait_until(lambda: group_lag(prefixed(SHARED), [topic]) == 0, SECONDS, "the offsets do not follow")

    for provider in (alimtalk, platform):
        assert len({(call.key, call.body) for call in provider.calls}) == len(provider.effects) == orders
    assert StoredOrder.objects.count() == OrderMinute.objects.get().completed == orders
    assert not DeadLetter.objects.exists()


def take_a_moment(call: Call) -> Answer:
    time.sleep(0.1)
    return 200
