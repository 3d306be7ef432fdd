"""One process at a time judges the alarms; the others stand by."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial

import pytest

from common.postgres.clock import database_time
from common.processes.lifecycle import StopFlag
from devstack import wait_until
from kafka_bridge.models import AlarmLease
from kafka_bridge.operating import alarm_duty
from kafka_bridge.operating.alarm_duty import LEASE_SECONDS, AlarmDuty
from kafka_bridge.operating.evaluation import AlertEvaluator, Condition
from tests.support.threads import in_another_session

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def first() -> AlarmDuty:
    return AlarmDuty(StopFlag())


@pytest.fixture
def second() -> AlarmDuty:
    return AlarmDuty(StopFlag())


def let_the_lease_expire() -> None:
    AlarmLease.objects.update(expires_at=database_time() - timedelta(seconds=1))


def test_of_two_processes_one_judges(first: AlarmDuty, second: AlarmDuty) -> None:
    assert [first.step(), second.step(), first.step(), second.step()] == [True, False, True, False]
    assert first.judged_at is not None
    assert second.judged_at is None


def test_of_two_that_begin_at_once_one_judges() -> None:
    steps = [in_another_session(AlarmDuty(StopFlag()).step) for _ in range(6)]
    assert sorted(step.result(30) for step in steps) == [False] * 5 + [True]


def test_each_judgement_extends_the_lease_by_the_databases_clock(first: AlarmDuty) -> None:
    first.step()
    let_the_lease_expire()
    # No other process was there to take it.
    assert first.step()
    lease = AlarmLease.objects.get()
    assert lease.expires_at is not None
    assert lease.judged_at is not None
    assert lease.expires_at - lease.judged_at == timedelta(seconds=LEASE_SECONDS)


def test_a_process_that_hangs_loses_the_duty_and_stands_by_when_it_resumes(
    first: AlarmDuty, second: AlarmDuty, caplog: pytest.LogCaptureFixture
) -> None:
    first.step()
    let_the_lease_expire()
    assert second.step()
    assert not first.step()
    assert "another process judges the alarms" in caplog.text
    let_the_lease_expire()
    assert first.step()
    assert not second.step()


def test_a_process_that_hung_while_it_judged_does_not_count_as_having_judged(
    first: AlarmDuty, second: AlarmDuty, monkeypatch: pytest.MonkeyPatch
) -> None:
    first.step()
    judged_at = first.judged_at
    tick = AlertEvaluator.tick

    def hang(evaluator: AlertEvaluator, keep_duty: object) -> bool:
        monkeypatch.setattr(AlertEvaluator, "tick", tick)
        let_the_lease_expire()
        assert second.step()
        return True

    monkeypatch.setattr(AlertEvaluator, "tick", hang)
    assert not first.step()
    assert first.judged_at == judged_at
    assert second.step()


def test_a_slow_judgement_keeps_the_duty_between_its_judges(
    first: AlarmDuty, second: AlarmDuty, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without that a standby takes it from a judgement that lasts longer than the lease, and loses it the same way."""
    monkeypatch.setattr(alarm_duty, "EXTEND_AFTER_SECONDS", 0.0)
    first.step()
    let_the_lease_expire()
    evaluator = AlertEvaluator(judges=[((), list), ((), list)])
    stolen: list[bool] = []

    def keep_duty() -> bool:
        extended = first.keep()
        stolen.append(second.step())
        return extended

    assert evaluator.tick(keep_duty)
    assert stolen == [False, False]


def test_a_judgement_that_has_lost_the_duty_ends(first: AlarmDuty) -> None:
    judged: list[str] = []

    def judge(name: str) -> list[Condition]:
        judged.append(name)
        return []

    evaluator = AlertEvaluator(judges=[((), partial(judge, "a")), ((), partial(judge, "b"))])
    keeps = iter([True, False])
    assert not evaluator.tick(lambda: next(keeps))
    assert judged == ["a"]


def test_alarms_that_a_judge_cannot_judge_for_a_minute_count_as_not_judged(
    first: AlarmDuty, monkeypatch: pytest.MonkeyPatch
) -> None:
    first.step()
    judged_at = first.judged_at
    monkeypatch.setattr(AlertEvaluator, "tick", lambda evaluator, keep_duty: False)
    assert first.step()
    assert first.judged_at != judged_at
    monkeypatch.setattr(alarm_duty, "INCOMPLETE_SECONDS", 0.0)
    judged_at = first.judged_at
    assert first.step()
    assert first.judged_at == judged_at


def test_a_process_that_cannot_judge_does_not_keep_the_duty(
    first: AlarmDuty, second: AlarmDuty, monkeypatch: pytest.MonkeyPatch
) -> None:
    first.step()
    before = AlarmLease.objects.get()

    def fail(evaluator: AlertEvaluator, keep_duty: object) -> bool:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(AlertEvaluator, "tick", fail)
        with pytest.raises(ZeroDivisionError):
            first.step()
    after = AlarmLease.objects.get()
    assert (after.expires_at, after.judged_at) == (before.expires_at, before.judged_at)


def test_a_process_that_stops_hands_the_duty_over_at_once(second: AlarmDuty, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alarm_duty, "TICK_SECONDS", 0.1)
    stop = StopFlag()
    thread = AlarmDuty(stop)
    thread.start()
    wait_until(lambda: thread.judged_at is not None, 20, "the alarms are not judged")
    assert not second.step()
    stop.request()
    thread.end()
    assert not thread.is_alive()
    assert second.step()


def test_a_standby_that_stops_leaves_the_duty_where_it_is(first: AlarmDuty, monkeypatch: pytest.MonkeyPatch) -> None:
    first.step()
    monkeypatch.setattr(alarm_duty, "TICK_SECONDS", 0.1)
    stop = StopFlag()
    standby = AlarmDuty(stop)
    standby.start()
    stop.request()
    standby.join(20)
    assert standby.judged_at is None
    assert AlarmLease.objects.exclude(owner=None).exists()


def test_an_error_ends_no_duty(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(alarm_duty, "TICK_SECONDS", 0.05)
    tick, failures = AlertEvaluator.tick, iter([True, True])

    def fail_twice(evaluator: AlertEvaluator, keep_duty: Callable[[], bool]) -> bool:
        if next(failures, False):
            raise ZeroDivisionError("a tick failed")
        return tick(evaluator, keep_duty)

    monkeypatch.setattr(AlertEvaluator, "tick", fail_twice)
    stop = StopFlag()
    thread = AlarmDuty(stop)
    thread.start()
    try:
        wait_until(lambda: thread.judged_at is not None, 20, "the alarms are not judged")
    finally:
        stop.request()
        thread.join(20)
    assert caplog.text.count("alarms are not judged, next attempt in 5 s: a tick failed") == 2
