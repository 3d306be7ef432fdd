"""A consumer process keeps to the pace that AlimTalk allows: every message arrives once, none becomes a dead letter."""

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from devstack import wait_until
from devstack.ports import free_port
from kafka_bridge.client import group_lag
from kafka_bridge.models import DeadLetter, ProcessedEvent
from kafka_bridge.registry import groups
from tests.effects.cast import completed_body, result_body
from tests.support.kafka import produce
from tests.support.provider import Provider, Quota
from tests.support.service import Service, environment

pytestmark = pytest.mark.django_db(transaction=True)

ORDERS = range(1, 61)
RESULTS = range(1, 21)
GROUPS = ("notification", "results")
CALLS_A_SECOND = 8


@pytest.fixture
def metrics_port() -> int:
    return free_port()


@pytest.fixture
def service(topics: str, alimtalk: Provider, metrics_port: int, tmp_path: Path) -> Iterator[Service]:
    """Processes that call ``alimtalk``."""
    env = environment(ALIMTALK_URL=alimtalk.url, ALIMTALK_KEY="the-key", METRICS_PORT=str(metrics_port))
    service = Service(tmp_path, env)
    yield service
    service.end()


def lag() -> int:
    return sum(group_lag(groups()[name].group_id, groups()[name].topics) for name in GROUPS)


def settled() -> int:
    return ProcessedEvent.objects.count() + DeadLetter.objects.count()


def metric_lines(port: int, name: str) -> list[str]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return [line for line in lines if line.startswith(name)]


def test_two_groups_of_a_process_share_the_pace_of_a_provider_that_throttles(
    service: Service, alimtalk: Provider, metrics_port: int
) -> None:
    quota = alimtalk.answer = Quota(CALLS_A_SECOND)
    for order_id in ORDERS:
        produce("order-completed", [json.dumps(completed_body(order_id)).encode()], key=str(order_id).encode())
    produce("coupon-issue-response", [json.dumps(result_body(user_id)).encode() for user_id in RESULTS])

    consumer = service.start_command(
        "consume_coupons", "--group", "notification", "--group", "results", name="consumer"
    )
    handled = len(ORDERS) + len(RESULTS)
    wait_until(
        lambda: ProcessedEvent.objects.count() + DeadLetter.objects.count() >= handled, 120, "it does not catch up"
    )
    wait_until(lambda: lag() == 0, 30, "the offsets do not follow")

    assert not DeadLetter.objects.exists()
    users = sorted(json.loads(call.body)["userId"] for call in alimtalk.effects.values())
    assert users == sorted([*RESULTS, *(7000 + order_id for order_id in ORDERS)])
    assert ProcessedEvent.objects.count() == len(users)
    # The provider did throttle; each message it took arrived once, and the calls it refused are few.
    assert quota.throttled_at
    assert len(alimtalk.calls) == len(users) + len(quota.throttled_at)
    assert len(quota.throttled_at) < len(users) / 2
    (throttled,) = metric_lines(metrics_port, 'provider_throttled_total{provider="AlimTalk"}')
    assert float(throttled.split()[1]) == len(quota.throttled_at)
    (pace,) = metric_lines(metrics_port, 'provider_pace_calls_per_second{provider="AlimTalk"}')
    assert 0 < float(pace.split()[1]) <= 4 * CALLS_A_SECOND
    log = consumer.log_tail(1000)
    assert 1 <= log.count("AlimTalk asks to slow down") <= 3
    assert 1 <= log.count("AlimTalk takes calls again") <= 3
