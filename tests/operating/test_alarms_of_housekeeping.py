"""The alarm about tables that are not pruned."""

from __future__ import annotations

import pytest
from pytest_django import Settings

from common.processes.lifecycle import StopFlag
from kafka_bridge.operating import housekeeping, housekeeping_alarms
from kafka_bridge.operating.evaluation import AlertEvaluator
from kafka_bridge.operating.housekeeping import HousekeepingTask, housekeep
from kafka_bridge.operating.housekeeping_alarms import HOUSEKEEPING_BEHIND, judge_housekeeping
from tests.operating.alarms import evaluator_of, move_into_the_past, open_now, open_rules

pytestmark = pytest.mark.django_db(transaction=True)

RUNS = "kafka_bridge_housekeepingrun"


class Broom:
    """Prunes nothing, or fails."""

    def __init__(self) -> None:
        self.failure: Exception | None = None

    def __call__(self, stop: StopFlag) -> int:
        if self.failure is not None:
            raise self.failure
        return 0


@pytest.fixture
def broom(monkeypatch: pytest.MonkeyPatch) -> Broom:
    """The task ``crumbs``, which is all there is to do."""
    broom = Broom()
    tasks = [HousekeepingTask("crumbs", "CRUMB_HOURS", broom)]
    for module in (housekeeping, housekeeping_alarms):
        monkeypatch.setattr(module, "housekeeping_tasks", lambda: tasks)
    return broom


@pytest.fixture
def evaluator(broom: Broom, settings: Settings) -> AlertEvaluator:
    settings.ALERT_END_SECONDS = 0
    return evaluator_of(HOUSEKEEPING_BEHIND, judge_housekeeping)


def test_a_task_that_goes_on_failing_opens_an_alert_until_it_succeeds(
    broom: Broom, evaluator: AlertEvaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    housekeep(StopFlag())
    evaluator.tick()
    assert open_rules() == []
    broom.failure = ValueError("the dustpan is full")
    housekeep(StopFlag())
    evaluator.tick()
    assert open_rules() == []
    monkeypatch.setattr(housekeeping_alarms, "FAILING_SECONDS", 0.0)
    evaluator.tick()
    assert open_now() == [("housekeeping-behind", "crumbs failed: the dustpan is full")]
    broom.failure = None
    housekeep(StopFlag())
    evaluator.tick()
    assert open_rules() == []


def test_a_task_that_has_not_run_for_an_hour_opens_an_alert(evaluator: AlertEvaluator) -> None:
    housekeep(StopFlag())
    move_into_the_past(RUNS, ["ran_at", "succeeded_at"], 3590)
    evaluator.tick()
    assert open_rules() == []
    move_into_the_past(RUNS, ["ran_at", "succeeded_at"], 20)
    evaluator.tick()
    ((rule, summary),) = open_now()
    assert (rule, summary.startswith("crumbs has not succeeded since ")) == ("housekeeping-behind", True)
    housekeep(StopFlag())
    evaluator.tick()
    assert open_rules() == []


def test_a_task_that_has_never_run_is_given_the_time(evaluator: AlertEvaluator) -> None:
    evaluator.tick()
    assert open_rules() == []
    (condition,) = judge_housekeeping()
    assert (condition.summary, condition.for_seconds) == ("crumbs have never run: is a housekeeper running?", 3600)


def test_a_task_that_is_there_no_more_is_not_missed(evaluator: AlertEvaluator, monkeypatch: pytest.MonkeyPatch) -> None:
    housekeep(StopFlag())
    move_into_the_past(RUNS, ["ran_at", "succeeded_at"], 86_400)
    monkeypatch.setattr(housekeeping_alarms, "housekeeping_tasks", list)
    evaluator.tick()
    assert open_rules() == []


def test_how_long_housekeeping_may_be_behind_is_a_setting(evaluator: AlertEvaluator, settings: Settings) -> None:
    housekeep(StopFlag())
    move_into_the_past(RUNS, ["ran_at", "succeeded_at"], 86_400)
    settings.ALERT_HOUSEKEEPING_MINUTES = 1500
    evaluator.tick()
    assert open_rules() == []
    settings.ALERT_HOUSEKEEPING_MINUTES = 0
    evaluator.tick()
    assert open_rules() == []
