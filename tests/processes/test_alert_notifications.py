"""Notifications of alerts by real processes: the housekeeper sends them, and the reconciler beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from devstack import wait_until
from kafka_bridge.models import Alert, AlertNotification
from kafka_bridge.operating.alerts import AlertRule, end_rules, open_alert
from tests.processes.conftest import MOMENT_SECONDS
from tests.support.provider import HANG, Provider
from tests.support.service import Service, environment, kill_group

pytestmark = pytest.mark.django_db(transaction=True)

FLOOD = AlertRule("flood", "critical")


@pytest.fixture
def webhook() -> Iterator[Provider]:
    webhook = Provider()
    webhook.up()
    yield webhook
    webhook.close()


@pytest.fixture
def deadman() -> Iterator[Provider]:
    deadman = Provider()
    deadman.up()
    yield deadman
    deadman.close()


@pytest.fixture
def service(
    transactional_db: None, topics: str, webhook: Provider, deadman: Provider, tmp_path: Path
) -> Iterator[Service]:
    """Processes that call ``webhook`` and ``deadman``."""
    env = environment(ALERT_WEBHOOK_URL=webhook.url, ALERT_DEADMAN_URL=deadman.url, ENVIRONMENT_NAME="staging")
    service = Service(tmp_path, env)
    yield service
    service.end()


def when_told(webhook: Provider, count: int) -> list[str]:
    """Wait until the webhook was told so often; returns the phases."""
    wait_until(lambda: len(webhook.effects) >= count, MOMENT_SECONDS, f"not told {count} times")
    return [key.partition(":")[2] for key in webhook.effects]


def when_all_is_told() -> None:
    wait_until(lambda: not AlertNotification.objects.exists(), MOMENT_SECONDS, "notifications are left")


def test_the_housekeeper_tells_and_calls_the_dead_mans_switch(
    service: Service, webhook: Provider, deadman: Provider
) -> None:
    # Two answers that do not count before the first that does.
    webhook.answer = lambda call: 503 if call.number == 1 else 200
    open_alert(FLOOD, "the water rises")
    housekeeper = service.start("housekeeper")
    assert when_told(webhook, 1) == ["start"]
    end_rules([FLOOD.name])
    assert when_told(webhook, 2) == ["start", "end"]
    when_all_is_told()
    assert len(webhook.calls) == 3
    assert json.loads(webhook.calls[-1].body)["text"].startswith("[staging] ended after ")
    wait_until(lambda: deadman.calls, MOMENT_SECONDS, "the dead man's switch was not called")
    assert housekeeper.stop() == 0


def test_what_a_killed_sender_was_sending_is_told_by_the_standby_under_the_same_key(
    service: Service, webhook: Provider
) -> None:
    webhook.answer = lambda call: HANG if call.number == 1 else 200
    open_alert(FLOOD, "the water rises")
    housekeeper = service.start("housekeeper")
    wait_until(lambda: webhook.calls, MOMENT_SECONDS, "not called")
    kill_group(housekeeper)
    reconciler = service.start("reconciler")
    wait_until(lambda: len(webhook.calls) == 2, MOMENT_SECONDS, "not called again")
    when_all_is_told()
    assert [call.key for call in webhook.calls] == [f"{Alert.objects.get().id}:start"] * 2
    assert reconciler.stop() == 0
