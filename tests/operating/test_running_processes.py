"""Which processes run, and which of them are silent, hang or are of another version."""

from __future__ import annotations

import time

import pytest
from django.core.management import call_command
from django.db import connection
from pytest_django import DjangoAssertNumQueries, Settings

from common.processes.lifecycle import StopFlag
from kafka_bridge.lag import HeldPartition, lag_by_partition
from kafka_bridge.models import Alert, ProcessHeartbeat
from kafka_bridge.operating.evaluation import AlertEvaluator
from kafka_bridge.operating.heartbeat import ConsumerReport, Heartbeat
from kafka_bridge.operating.processes import (
    PROCESS_SILENT,
    ProcessState,
    judge_processes,
    running_processes,
)

pytestmark = pytest.mark.django_db(transaction=True)


def age(seconds: float, *columns: str, role: str = "relay") -> None:
    """Make columns of a heartbeat older, as if the clock had gone on; all of them if none is named."""
    with connection.cursor() as cursor:
        for column in columns or ("started_at", "seen_at", "turned_at", "polled_at"):
            cursor.execute(
                f"UPDATE kafka_bridge_processheartbeat SET {column} = {column} - %s * interval '1 second'"
                " WHERE role = %s",
                [seconds, role],
            )


def states() -> list[tuple[str, str]]:
    return [(process.role, process.state) for process in running_processes()]


def held(lag_ms: int | None, *, partition: int = 0) -> HeldPartition:
    return HeldPartition(
        group="issue",
        topic="requests",
        partition=partition,
        next_offset=3,
        end_offset=5,
        lag=2,
        lag_ms=lag_ms,
    )


def consumer_heartbeat(role: str, *partitions: HeldPartition) -> Heartbeat:
    heartbeat = Heartbeat(role)
    heartbeat.watch_consumer(lambda now: ConsumerReport(["issue"], time.monotonic() - 1, partitions))
    return heartbeat


def test_a_process_says_what_it_is_and_what_it_holds(settings: Settings) -> None:
    settings.SERVICE_VERSION = "1.2.3"
    consumer_heartbeat("consumer", held(1500)).beat()
    (process,) = running_processes()
    assert (process.role, process.version, process.state) == ("consumer", "1.2.3", ProcessState.ALIVE)
    assert (process.groups, process.partitions) == (("issue",), (held(1500),))
    assert 1_000_000 < (process.memory_bytes or 0) < 10**10
    assert process.polled_at is not None
    assert 0.5 < (process.seen_at - process.polled_at).total_seconds() < 10
    assert process.silent_seconds < 10


def test_a_process_without_consumers_holds_nothing() -> None:
    Heartbeat("relay").beat()
    (process,) = running_processes()
    assert (process.groups, process.partitions, process.polled_at) == ((), (), None)


def test_silent_and_hanging_processes_are_told_apart() -> None:
    for role in ("relay", "consumer", "orders"):
        heartbeat = Heartbeat(role)
        heartbeat.loop()
        heartbeat.beat()
    age(25)
    age(65, "turned_at", role="consumer")
    assert states() == [("consumer", "hanging"), ("orders", "alive"), ("relay", "silent")]


def test_a_loop_that_waits_long_between_its_passes_does_not_hang(settings: Settings) -> None:
    heartbeat = Heartbeat("housekeeper")
    tick = heartbeat.loop()
    ticks: list[float] = []

    def count() -> None:
        ticks.append(time.monotonic())
        tick()

    stop = StopFlag()
    assert not stop.watched(count).wait(0.35)
    assert len(ticks) >= 3
    stop.request()
    assert stop.watched(count).wait(60)


def test_a_process_of_another_version_than_the_newest_is_told(settings: Settings) -> None:
    for role, version in (("relay", "1.0"), ("site", "1.0"), ("web", "1.1")):
        settings.SERVICE_VERSION = version
        Heartbeat(role).beat()
    assert {process.role: process.is_newest for process in running_processes()} == {
        "relay": False,
        "site": False,
        "web": True,
    }


def test_a_killed_process_is_forgotten_when_its_successor_starts() -> None:
    # Its neighbour lives on, and is no successor.
    neighbour = Heartbeat("relay")
    neighbour.beat()
    Heartbeat("relay").beat()
    age(25)
    neighbour.beat()
    assert states() == [("relay", "alive"), ("relay", "silent")]
    Heartbeat("relay").beat()
    assert states() == [("relay", "alive")] * 2
    assert ProcessHeartbeat.objects.count() == 2


def test_one_process_that_starts_replaces_one_of_three_that_were_killed() -> None:
    for _ in range(3):
        Heartbeat("relay").beat()
    age(100, "started_at")
    age(25)
    Heartbeat("relay").beat()
    assert states() == [("relay", "silent")] * 2 + [("relay", "alive")]
    Heartbeat("relay").beat()
    assert states() == [("relay", "silent")] + [("relay", "alive")] * 2


def test_the_process_that_ends_a_crash_loop_replaces_all_of_it() -> None:
    Heartbeat("relay").beat()
    age(100, "started_at")
    for _ in range(3):
        age(25)
        Heartbeat("relay").beat()
    age(25)
    Heartbeat("relay").beat()
    assert states() == [("relay", "alive")]


@pytest.mark.parametrize("column", ["groups", "partitions"])
@pytest.mark.parametrize("value", ['{"a": 1}', "7", '[7, {"partition": 1e30}]'])
def test_a_row_that_cannot_be_read_hides_no_other_process(column: str, value: str) -> None:
    consumer_heartbeat("consumer", held(1000)).beat()
    Heartbeat("relay").beat()
    with connection.cursor() as cursor:
        cursor.execute(f"UPDATE kafka_bridge_processheartbeat SET {column} = %s WHERE role = 'relay'", [value])
    assert [(process.role, len(process.partitions)) for process in running_processes()] == [
        ("consumer", 1),
        ("relay", 0),
    ]
    assert [(lag.place.topic, lag.milliseconds) for lag in lag_by_partition()] == [("requests", 1000)]
    assert list(judge_processes()) == []


def test_a_process_that_was_suspended_is_given_time_for_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    heartbeat = Heartbeat("relay")
    heartbeat.loop()
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    heartbeat.beat()
    now += 600
    heartbeat.beat()
    assert states() == [("relay", "alive")]
    for _ in range(13):
        now += 5
        heartbeat.beat()
    assert states() == [("relay", "hanging")]


def test_a_killed_process_without_a_successor_is_forgotten_after_an_hour() -> None:
    Heartbeat("relay").beat()
    age(3500)
    assert states() == [("relay", "silent")]
    age(200)
    assert states() == []


def test_an_operator_forgets_silent_processes(capsys: pytest.CaptureFixture[str]) -> None:
    for role in ("relay", "orders"):
        Heartbeat(role).beat()
        age(25, role=role)
    Heartbeat("site").beat()
    call_command("forget_processes", "--role", "orders")
    assert states() == [("relay", "silent"), ("site", "alive")]
    call_command("forget_processes")
    assert states() == [("site", "alive")]
    call_command("forget_processes")
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(" on ")[0] for line in printed] == [
        "forgotten: orders",
        "forgotten: relay",
        "no process is silent",
    ]


def test_a_process_that_was_cut_off_is_back_with_its_next_heartbeat() -> None:
    heartbeat = Heartbeat("relay")
    heartbeat.beat()
    age(25)
    call_command("forget_processes")
    heartbeat.beat()
    assert states() == [("relay", "alive")]


def test_a_silent_process_is_an_alarm_after_it_had_time_to_come_back() -> None:
    Heartbeat("relay").beat()
    age(25)
    (condition,) = judge_processes()
    assert (condition.rule, condition.for_seconds) == (PROCESS_SILENT, 10.0)
    assert condition.subject.startswith("relay-")
    assert "relay on " in condition.summary


def test_an_alarm_opens_for_a_loop_that_hangs_and_ends_with_its_next_pass(settings: Settings) -> None:
    settings.ALERT_END_SECONDS = 0
    evaluator, heartbeat = AlertEvaluator(), Heartbeat("relay")
    tick = heartbeat.loop()
    heartbeat.beat()
    evaluator.tick()
    assert not Alert.objects.exists()

    age(65, "turned_at")
    evaluator.tick()
    alert = Alert.objects.get()
    assert (alert.severity, alert.ended_at) == ("critical", None)
    assert alert.rule.startswith("process-hanging-relay-")
    assert alert.runbook == "docs/runbooks/process-hanging.md"

    tick()
    heartbeat.beat()
    evaluator.tick()
    assert Alert.objects.get().ended_at is not None


def test_a_process_that_does_nothing_costs_one_statement_per_heartbeat(
    django_assert_num_queries: DjangoAssertNumQueries,
) -> None:
    heartbeat = consumer_heartbeat("consumer", *(held(0, partition=number) for number in range(20)))
    heartbeat.beat()
    before = time.thread_time()
    with django_assert_num_queries(10):
        for _ in range(10):
            heartbeat.beat()
    # One beat every five seconds: a fiftieth of a second would be 0.4 % of a core.
    assert (time.thread_time() - before) / 10 < 0.02


def test_the_table_of_processes_is_read_with_one_query(django_assert_num_queries: DjangoAssertNumQueries) -> None:
    for role in ("relay", "consumer", "site"):
        consumer_heartbeat(role, held(1000)).beat()
    with django_assert_num_queries(1):
        processes = running_processes()
    assert len(processes) == 3
