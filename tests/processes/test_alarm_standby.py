"""The housekeeper judges the alarms, and the reconciler stands by: one of them judges whatever becomes of the other."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
from django.db import connection

from common.postgres.clock import database_time
from devstack import wait_until
from kafka_bridge.models import AlarmLease, Alert, AlertNotification, DeadLetter, ProcessHeartbeat
from tests.operating.alarms import open_rules
from tests.processes.conftest import MOMENT_SECONDS
from tests.support.pooler import pgbouncer
from tests.support.service import Service, environment, kill_group

pytestmark = pytest.mark.django_db(transaction=True)

# The lease, two ticks, and a machine that is busy.
_TAKEOVER_SECONDS = 40.0


@pytest.fixture
def service(transactional_db: None, topics: str, tmp_path: Path) -> Iterator[Service]:
    """Processes with whose settings an alert ends at once."""
    service = Service(tmp_path, environment(ALERT_END_SECONDS="1", ALERT_DEAD_LETTERS="1"))
    yield service
    service.end()


def judge() -> UUID | None:
    """The process that has judged since it took the duty."""
    lease = AlarmLease.objects.filter(judged_at__isnull=False).first()
    return lease.owner if lease else None


def when_another_judges(than: UUID | None = None) -> UUID:
    """Wait until the alarms are judged, and not by ``than``; returns who does."""
    began = database_time()

    def is_judged() -> bool:
        return AlarmLease.objects.filter(judged_at__gt=began).exclude(owner=than).exclude(owner=None).exists()

    wait_until(is_judged, _TAKEOVER_SECONDS, "no other process judges the alarms", 0.1)
    owner = judge()
    assert owner is not None
    return owner


def let_the_lease_expire() -> None:
    with connection.cursor() as cursor:
        cursor.execute("UPDATE kafka_bridge_alarmlease SET expires_at = statement_timestamp()")


def dead_letters(*offsets: int) -> None:
    DeadLetter.objects.bulk_create(
        DeadLetter(
            consumer_group="issue", topic="coupon-issue-request", partition=0, offset=offset, message_timestamp=0,
            event_type="", headers=b"[]", error_class="E", error_message="",
        )
        for offset in offsets
    )  # fmt: skip


def told(rule: str) -> list[str]:
    return list(AlertNotification.objects.filter(alert__rule=rule).order_by("id").values_list("phase", flat=True))


def test_one_process_judges_though_the_other_hangs_and_is_killed(service: Service) -> None:
    housekeeper = service.start_command("housekeep", "--every", "60", name="housekeeper")
    first = when_another_judges()
    standby = service.start_command("reconcile", "--every", "60", name="reconciler")
    wait_until(ProcessHeartbeat.objects.filter(role="reconciler").exists, MOMENT_SECONDS, "the reconciler does not run")
    dead_letters(1, 2)
    wait_until(lambda: open_rules() == ["dead-letters"], MOMENT_SECONDS, "no alert was opened")
    assert judge() == first

    # It keeps its session, and would go on where it stands.
    os.kill(housekeeper.pid, signal.SIGSTOP)
    try:
        second = when_another_judges(first)
    finally:
        os.kill(housekeeper.pid, signal.SIGCONT)
    assert when_another_judges() == second

    kill_group(standby)
    let_the_lease_expire()
    assert when_another_judges(second) == first
    assert open_rules() == ["dead-letters"]
    DeadLetter.objects.update(closed_at=database_time())
    wait_until(lambda: told("dead-letters") == ["start", "end"], MOMENT_SECONDS, "the alert does not end")
    assert Alert.objects.filter(rule="dead-letters").count() == 1


def test_behind_a_pooler_one_process_judges_too(transactional_db: None, topics: str, tmp_path: Path) -> None:
    with pgbouncer(tmp_path) as pooler:
        service = Service(tmp_path, environment(DATABASE_URL=pooler.url, ALERT_DEAD_LETTERS="1"))
        try:
            dead_letters(1, 2)
            housekeeper = service.start_command("housekeep", "--every", "60", name="housekeeper")
            first = when_another_judges()
            service.start_command("reconcile", "--every", "60", name="reconciler")
            running = ProcessHeartbeat.objects.filter(role="reconciler")
            wait_until(running.exists, MOMENT_SECONDS, "the reconciler does not run")
            assert when_another_judges() == first
            assert open_rules() == ["dead-letters"]
            housekeeper.stop()
            # It has released the duty, which the other takes at its next tick.
            when_another_judges(first)
            assert told("dead-letters") == ["start"]
        finally:
            service.end()
