"""Running processes report themselves, show their stacks on SIGUSR1, and are missed when they are killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from django.conf import settings
from django.db import connection

from coupons.models import Coupon
from demo.processes import WebProcess
from devstack import ManagedProcess, wait_until
from devstack.procinfo import read_stat
from kafka_bridge.models import Alert, ProcessHeartbeat
from kafka_bridge.operating.processes import RunningProcess, running_processes
from kafka_bridge.operating.samples import counts_since
from tests.processes.conftest import MOMENT_SECONDS, Web, assert_in_the_middle_of, when_accepted
from tests.support.burst import Burst
from tests.support.ledger import assert_guarantees_hold
from tests.support.service import Service, environment, kill_group

pytestmark = pytest.mark.django_db(transaction=True)


def processes_of(*programs: ManagedProcess) -> dict[str, RunningProcess]:
    """What programs and their workers report, by role, once all do."""
    found: dict[str, RunningProcess] = {}

    def look() -> bool:
        for process in running_processes():
            stat = read_stat(process.pid)
            for program in programs:
                if process.pid == program.pid or (stat is not None and stat.parent == program.pid):
                    found[process.role] = process
        return len(found) == len(programs)

    wait_until(look, MOMENT_SECONDS, f"no heartbeat of some of {[program.name for program in programs]}")
    return found


def accepted() -> float:
    return counts_since(600).get("accept", {}).get("accepted", 0)


def test_processes_show_their_stacks_in_the_middle_of_their_work_and_go_on(
    web: Web, service: Service, burst: Callable[..., Burst], coupons: Sequence[Coupon]
) -> None:
    assert isinstance(web.process, WebProcess)
    programs = [web.process, web.process.site, service.start("relay"), service.start("issuer", "--batch-size", "50")]
    processes = processes_of(*programs)
    assert processes.keys() == {"web", "site", "relay", "consumer"}
    crowd = burst()
    when_accepted(crowd, 100)
    for accepted in (200, 300):
        when_accepted(crowd, accepted)
        for process in processes.values():
            os.kill(process.pid, signal.SIGUSR1)
        # The servers themselves ignore it.
        web.process.send_signal(signal.SIGUSR1)
        web.process.site.send_signal(signal.SIGUSR1)
    assert_in_the_middle_of(crowd)
    assert_guarantees_hold(crowd, coupons)
    for program, line in zip(
        programs, ("backpressure.py", "backpressure.py", "relay_batch", "poll_and_handle"), strict=True
    ):
        log = program.log_path.read_text()
        assert log.count("stack 1 of ") == 2, program.name
        assert line in log, program.name
    # The servers' workers are the same.
    assert {role: process.pid for role, process in processes_of(*programs).items()} == {
        role: process.pid for role, process in processes.items()
    }


def test_a_consumer_reports_its_partitions_and_what_it_did(
    web: Web, service: Service, burst: Callable[..., Burst], coupons: Sequence[Coupon]
) -> None:
    programs = [service.start("relay"), service.start("issuer")]
    # The web process of earlier tests reports what it accepted for them with its first heartbeat.
    processes_of(web.process)
    before = accepted()
    crowd = burst(requests=200, users=100)
    assert_guarantees_hold(crowd, coupons)

    def is_reported() -> bool:
        held = processes_of(*programs)["consumer"].partitions
        return len(held) == 5 and sum(item.next_offset or 0 for item in held) >= 200

    wait_until(is_reported, MOMENT_SECONDS, "the partitions are not reported")
    consumer = processes_of(*programs)["consumer"]
    assert {(item.group, item.state, item.lag, item.lag_ms) for item in consumer.partitions} == {("issue", "ok", 0, 0)}
    assert {item.topic for item in consumer.partitions} == {f"{settings.KAFKA_TOPIC_PREFIX}coupon-issue-request"}
    assert (consumer.groups, consumer.version) == (("issue",), settings.SERVICE_VERSION)
    assert (consumer.memory_bytes or 0) > 10_000_000
    wait_until(lambda: accepted() >= before + 200, MOMENT_SECONDS, "the web process samples too little")
    for program in programs:
        assert program.stop() == 0
    # The rest is counted at the end.
    counts = counts_since(600)
    assert counts["issue"]["handled"] == 200
    assert counts["relay"]["published"] >= 200


def test_a_server_that_is_stopped_leaves_no_heartbeat(own_web: Web) -> None:
    assert isinstance(own_web.process, WebProcess)
    programs = [own_web.process, own_web.process.site]
    ids = [process.id for process in processes_of(*programs).values()]
    for program in programs:
        program.send_signal(signal.SIGTERM)
    for program in programs:
        assert program.wait(20) == 0
    assert not ProcessHeartbeat.objects.filter(id__in=ids).exists()


def test_a_killed_process_is_an_alarm_until_its_successor_starts(transactional_db: None, tmp_path: Path) -> None:
    service = Service(tmp_path, environment(ALERT_END_SECONDS="1"))
    try:
        orders, housekeeper = service.start("orders"), service.start("housekeeper")
        killed = processes_of(orders, housekeeper)["orders"]
        kill_group(orders)
        # As if the alarm's time had gone by.
        with connection.cursor() as cursor:
            cursor.execute(
                "UPDATE kafka_bridge_processheartbeat SET seen_at = seen_at - interval '20 seconds' WHERE id = %s",
                [killed.id],
            )
        alerts = Alert.objects.filter(rule__startswith="process-silent-orders-")
        wait_until(alerts.exists, MOMENT_SECONDS, "no alarm")
        assert str(killed) in alerts.get().summary
        orders.start()
        wait_until(alerts.exclude(ended_at=None).exists, MOMENT_SECONDS, "the alarm does not end")
        assert orders.stop() == housekeeper.stop() == 0
        assert not ProcessHeartbeat.objects.exclude(role__in=("web", "site")).exists()
    finally:
        service.end()
