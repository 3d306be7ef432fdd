"""Every running process has a row that says so."""

import pytest
from django.db import connection

from devstack.processes import wait_until
from kafka_bridge.models import ProcessHeartbeat
from kafka_bridge.operating.heartbeat import Heartbeat

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_process_beats_until_it_ends() -> None:
    heartbeat = Heartbeat("relay")
    heartbeat.start()
    wait_until(ProcessHeartbeat.objects.exists, 10, "no heartbeat")
    row = ProcessHeartbeat.objects.get()
    assert (row.role, row.pid > 0, bool(row.host)) == ("relay", True, True)
    heartbeat.end()
    assert not ProcessHeartbeat.objects.exists()


def test_a_loop_that_hangs_is_told_apart_from_a_process_that_is_gone() -> None:
    heartbeat = Heartbeat("issuer")
    tick = [heartbeat.loop(), heartbeat.loop()]
    heartbeat.beat()
    first = ProcessHeartbeat.objects.get()
    heartbeat.beat()
    hanging = ProcessHeartbeat.objects.get()
    assert hanging.seen_at > first.seen_at
    assert (hanging.turned_at - first.turned_at).total_seconds() < 0.01
    tick[0]()
    heartbeat.beat()
    assert (ProcessHeartbeat.objects.get().turned_at - first.turned_at).total_seconds() < 0.01
    tick[1]()
    heartbeat.beat()
    assert ProcessHeartbeat.objects.get().turned_at > hanging.turned_at


def test_rows_of_processes_that_died_long_ago_are_forgotten() -> None:
    Heartbeat("relay").beat()
    with connection.cursor() as cursor:
        cursor.execute("UPDATE kafka_bridge_processheartbeat SET seen_at = now() - interval '2 days'")
    Heartbeat("relay").beat()
    assert ProcessHeartbeat.objects.count() == 1
