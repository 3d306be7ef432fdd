"""Conditions become alerts: one row for each while it lasts, by the database's clock."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from uuid import uuid4

import pytest
from django.db import connection
from django.db.utils import OperationalError
from pytest_django import Settings

from common.postgres.clock import database_time
from common.postgres.limited_reads import limited_read
from kafka_bridge.models import AlarmLease, Alert, AlertNotification
from kafka_bridge.operating import evaluation
from kafka_bridge.operating.alerts import AlertRule, alert_rule, alert_rules, clear_alert, open_alert
from kafka_bridge.operating.evaluation import AlertEvaluator, Condition, NotJudged
from tests.operating.alarms import move_into_the_past
from tests.support.threads import lock

pytestmark = pytest.mark.django_db(transaction=True)

SMOKE = AlertRule("smoke", "critical")
FROST = AlertRule("frost", "warning")


class Clock:
    """The database's time as the evaluator reads it, which stands until a test moves it on."""

    def __init__(self) -> None:
        self._now = database_time()

    def __call__(self) -> datetime:
        # Fails like the database itself.
        database_time()
        return self._now

    def passes(self, seconds: float) -> None:
        self._now += timedelta(seconds=seconds)

    def judges_for(self, seconds: int, evaluator: AlertEvaluator) -> None:
        """Let the evaluator tick every second for so long."""
        for _ in range(seconds):
            self.passes(1)
            evaluator.tick()


@pytest.fixture
def clock(transactional_db: None, monkeypatch: pytest.MonkeyPatch, settings: Settings) -> Clock:
    clock = Clock()
    settings.ALERT_END_SECONDS = 60
    monkeypatch.setattr(evaluation, "database_time", clock)
    return clock


class Judge:
    """Finds what a test sets."""

    def __init__(self, *wrong: Condition) -> None:
        self.wrong: Iterable[Condition] = wrong
        self.failure: Callable[[], object] = lambda: None

    def __call__(self) -> Iterable[Condition]:
        self.failure()
        return self.wrong


def smoke(text: str = "it smokes", *, subject: str = "", for_seconds: float = 0.0) -> Condition:
    return Condition(SMOKE, text, subject, for_seconds)


def frost() -> Condition:
    return Condition(FROST, "it freezes")


@pytest.fixture
def judge() -> Judge:
    return Judge()


@pytest.fixture
def evaluator(judge: Judge, clock: Clock) -> AlertEvaluator:
    return AlertEvaluator(judges=[([SMOKE], judge)])


def open_now() -> list[str]:
    return list(Alert.objects.filter(ended_at=None).order_by("rule").values_list("rule", flat=True))


def told() -> list[tuple[str, str]]:
    return list(AlertNotification.objects.order_by("id").values_list("alert__rule", "phase"))


# How long


def test_an_alert_is_one_row_while_its_condition_lasts(judge: Judge, evaluator: AlertEvaluator, clock: Clock) -> None:
    judge.wrong = [smoke("first")]
    evaluator.tick()
    first = Alert.objects.get()
    judge.wrong = [smoke("second")]
    clock.passes(3600)
    evaluator.tick()
    alert = Alert.objects.get()
    assert (alert.rule, alert.severity, alert.summary, alert.ended_at) == ("smoke", "critical", "first", None)
    assert alert.runbook == "docs/runbooks/smoke.md"
    assert first.last_true_at is not None
    assert alert.last_true_at is not None
    assert alert.last_true_at > first.last_true_at
    assert told() == [("smoke", "start")]


def test_an_alert_ends_once_its_condition_was_false_for_a_minute(
    judge: Judge, evaluator: AlertEvaluator, clock: Clock
) -> None:
    judge.wrong = [smoke()]
    evaluator.tick()
    judge.wrong = []
    clock.judges_for(59, evaluator)
    assert open_now() == ["smoke"]
    clock.judges_for(1, evaluator)
    assert open_now() == []
    evaluator.tick()
    assert told() == [("smoke", "start"), ("smoke", "end")]


def test_a_condition_that_returns_within_the_minute_keeps_its_alert(
    judge: Judge, evaluator: AlertEvaluator, clock: Clock
) -> None:
    for _ in range(3):
        judge.wrong = [smoke()]
        evaluator.tick()
        judge.wrong = []
        clock.judges_for(59, evaluator)
    assert (open_now(), Alert.objects.count()) == (["smoke"], 1)


def test_an_alert_that_another_process_cleared_ends_a_minute_later(evaluator: AlertEvaluator) -> None:
    open_alert(FROST, "it freezes")
    clear_alert(FROST)
    move_into_the_past("kafka_bridge_alert", ["cleared_at"], 59)
    evaluator.tick()
    assert open_now() == ["frost"]
    clear_alert(FROST)
    move_into_the_past("kafka_bridge_alert", ["cleared_at"], 1)
    evaluator.tick()
    assert (open_now(), told()) == ([], [("frost", "start"), ("frost", "end")])


def test_an_alert_that_is_opened_again_within_the_minute_goes_on(evaluator: AlertEvaluator) -> None:
    assert open_alert(FROST, "it freezes")
    clear_alert(FROST)
    move_into_the_past("kafka_bridge_alert", ["cleared_at"], 59)
    assert not open_alert(FROST, "it freezes again")
    clear_alert(FROST)
    move_into_the_past("kafka_bridge_alert", ["cleared_at"], 59)
    evaluator.tick()
    assert (open_now(), told()) == (["frost"], [("frost", "start")])


def test_an_alert_that_ended_opens_anew(judge: Judge, evaluator: AlertEvaluator, clock: Clock) -> None:
    for _ in range(2):
        judge.wrong = [smoke()]
        evaluator.tick()
        judge.wrong = []
        clock.judges_for(60, evaluator)
    assert told() == [("smoke", "start"), ("smoke", "end")] * 2


def test_an_alert_opens_after_its_condition_was_true_for_as_long_as_it_says(
    judge: Judge, evaluator: AlertEvaluator, clock: Clock
) -> None:
    judge.wrong = [smoke(for_seconds=10)]
    evaluator.tick()
    clock.passes(9)
    evaluator.tick()
    assert open_now() == []
    clock.passes(1)
    evaluator.tick()
    assert open_now() == ["smoke"]


def test_a_condition_that_is_interrupted_is_timed_anew(judge: Judge, evaluator: AlertEvaluator, clock: Clock) -> None:
    for wrong in ([smoke(for_seconds=10)], [], [smoke(for_seconds=10)]):
        judge.wrong = wrong
        evaluator.tick()
        clock.passes(9)
        evaluator.tick()
    assert open_now() == []


def test_time_in_which_no_process_judged_ends_no_alert(judge: Judge, clock: Clock) -> None:
    judge.wrong = [smoke()]
    AlertEvaluator(judges=[([SMOKE], judge)]).tick()
    judged_at = clock()
    clock.passes(3600)
    judge.wrong = []
    after = AlertEvaluator(judged_at=judged_at, judges=[([SMOKE], judge)])
    after.tick()
    clock.judges_for(59, after)
    assert open_now() == ["smoke"]
    clock.judges_for(1, after)
    assert open_now() == []


def test_time_in_which_no_process_judged_opens_no_alert(judge: Judge, evaluator: AlertEvaluator, clock: Clock) -> None:
    judge.wrong = [smoke(for_seconds=10)]
    evaluator.tick()
    clock.passes(3600)
    evaluator.tick()
    clock.judges_for(9, evaluator)
    assert open_now() == []
    clock.judges_for(1, evaluator)
    assert open_now() == ["smoke"]


def test_another_process_that_takes_over_ends_an_alert_as_if_it_had_judged_all_the_time(
    judge: Judge, evaluator: AlertEvaluator, clock: Clock
) -> None:
    judge.wrong = [smoke()]
    evaluator.tick()
    judge.wrong = []
    clock.judges_for(30, evaluator)
    judged_at = clock()
    clock.passes(20)
    other = AlertEvaluator(judged_at=judged_at, judges=[([SMOKE], judge)])
    clock.judges_for(9, other)
    assert open_now() == ["smoke"]
    clock.judges_for(1, other)
    assert open_now() == []


def test_a_new_evaluator_keeps_an_open_alert_whose_condition_it_has_not_seen_for_long(
    judge: Judge, evaluator: AlertEvaluator, clock: Clock
) -> None:
    open_alert(SMOKE, "found by the process before")
    judge.wrong = [smoke(for_seconds=10)]
    evaluator.tick()
    clock.passes(5)
    evaluator.tick()
    assert open_now() == ["smoke"]
    alert = Alert.objects.get()
    assert alert.last_true_at is not None


def test_an_alert_that_an_operator_ended_opens_again_while_its_condition_is_true(
    judge: Judge, evaluator: AlertEvaluator
) -> None:
    judge.wrong = [smoke()]
    evaluator.tick()
    Alert.objects.update(ended_at=database_time())
    evaluator.tick()
    assert (open_now(), Alert.objects.count()) == (["smoke"], 2)


# Subjects


def test_each_subject_has_an_alert_of_its_own(judge: Judge, evaluator: AlertEvaluator, clock: Clock) -> None:
    judge.wrong = [smoke(subject="kitchen"), smoke(subject="cellar"), smoke(subject="x" * 100)]
    evaluator.tick()
    assert open_now()[:2] == ["smoke-cellar", "smoke-kitchen"]
    assert len(open_now()) == 3
    judge.wrong = [smoke(subject="cellar")]
    clock.judges_for(60, evaluator)
    assert open_now() == ["smoke-cellar"]


def test_an_alert_of_another_rule_is_left_alone(judge: Judge, evaluator: AlertEvaluator, clock: Clock) -> None:
    for rule in (FROST, AlertRule("smoker", "warning")):
        open_alert(rule, "opened by others")
    clock.judges_for(61, evaluator)
    assert open_now() == ["frost", "smoker"]


def test_a_summary_of_any_text_is_stored(judge: Judge, evaluator: AlertEvaluator) -> None:
    judge.wrong = [smoke("nul \0 and 한국어 %s"), smoke("x", subject="100%s-\\")]
    evaluator.tick()
    assert open_now() == ["smoke", "smoke-100%s-\\"]
    assert Alert.objects.get(rule="smoke").summary == "nul \\0 and 한국어 %s"


@pytest.mark.parametrize("name", ["late", "late-trains", "late-trains-today"])
def test_a_rule_whose_alerts_look_like_those_of_another_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kafka_bridge.operating.alerts._rules", {})
    registered = alert_rule("late-trains", "warning")
    assert alert_rule("late-trains", "warning") == registered
    assert alert_rule("late-train", "warning").name == "late-train"
    with pytest.raises(ValueError, match="could not be told from those of 'late-trains'"):
        alert_rule(name, "critical")


def test_no_registered_rule_looks_like_another() -> None:
    rules = alert_rules().values()
    assert len(rules) >= 7
    assert [
        (rule.name, other.name) for rule in rules for other in rules if rule != other and rule.has(other.name)
    ] == []


# Judges that fail


def divide() -> object:
    return 1 / 0


def end_own_session() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")


def sleep_past_the_limit() -> object:
    return limited_read("SELECT pg_sleep(30)")


def test_a_judge_without_recent_figures_changes_no_alert(
    judge: Judge, evaluator: AlertEvaluator, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    def not_yet() -> object:
        raise NotJudged("nothing was measured yet")

    judge.wrong = [smoke()]
    evaluator.tick()
    judge.failure = not_yet
    clock.judges_for(61, evaluator)
    assert open_now() == ["smoke"]
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize("failure", [divide, end_own_session, sleep_past_the_limit])
def test_a_judge_that_fails_stops_no_other_and_changes_no_alert(
    failure: Callable[[], object], clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("common.postgres.limited_reads.READ_SECONDS", 0.2)
    failing, working = Judge(smoke()), Judge()
    evaluator = AlertEvaluator(judges=[([SMOKE], failing), ([FROST], working)])
    assert evaluator.tick()
    failing.failure = failure
    working.wrong = [frost()]
    assert not evaluator.tick()
    clock.passes(3600)
    assert not evaluator.tick()
    assert open_now() == ["frost", "smoke"]
    failing.failure, failing.wrong = (lambda: None), []
    assert evaluator.tick()
    clock.judges_for(59, evaluator)
    assert open_now() == ["frost", "smoke"]
    clock.judges_for(1, evaluator)
    assert open_now() == ["frost"]
    lines = [record.getMessage() for record in caplog.records if "judged" in record.getMessage()]
    assert len(lines) == 2
    assert lines[0].startswith("alerts smoke are not judged")
    assert lines[1] == "alerts smoke are judged again"


def test_a_judge_that_waits_for_a_locked_table_gives_up(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.postgres.limited_reads.READ_SECONDS", 0.2)
    judge.failure = lambda: limited_read("SELECT FROM kafka_bridge_sample")
    other = Judge(frost())
    evaluator = AlertEvaluator(judges=[([SMOKE], judge), ([FROST], other)])
    with lock("LOCK TABLE kafka_bridge_sample IN ACCESS EXCLUSIVE MODE"):
        assert not evaluator.tick()
    assert open_now() == ["frost"]


def test_a_judge_that_finds_what_is_another_judges_opens_nothing(
    judge: Judge, evaluator: AlertEvaluator, caplog: pytest.LogCaptureFixture
) -> None:
    judge.wrong = [frost()]
    assert not evaluator.tick()
    assert open_now() == []
    assert "conditions of other rules: frost" in caplog.text


def test_a_database_that_does_not_answer_is_an_error_of_the_tick(
    judge: Judge, evaluator: AlertEvaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose_the_database() -> None:
        monkeypatch.setitem(connection.settings_dict, "PORT", "1")
        end_own_session()

    judge.failure = lose_the_database
    with pytest.raises(OperationalError):
        evaluator.tick()
    monkeypatch.undo()


# The duty


def test_an_evaluator_whose_duty_another_process_has_taken_changes_nothing(judge: Judge, clock: Clock) -> None:
    mine, other = uuid4(), uuid4()
    lease = AlarmLease.objects.create(id=1, owner=mine)
    evaluator = AlertEvaluator(mine, judges=[([SMOKE], judge)])
    judge.wrong = [smoke()]
    evaluator.tick()
    assert open_now() == ["smoke"]
    before = Alert.objects.get()

    AlarmLease.objects.filter(pk=lease.pk).update(owner=other)
    judge.wrong = [smoke(), smoke(subject="cellar")]
    evaluator.tick()
    assert (open_now(), Alert.objects.get().last_true_at) == (["smoke"], before.last_true_at)
    judge.wrong = []
    clock.judges_for(61, evaluator)
    assert open_now() == ["smoke"]
    assert told() == [("smoke", "start")]

    AlarmLease.objects.filter(pk=lease.pk).update(owner=mine)
    evaluator.tick()
    assert open_now() == []


def test_a_tick_with_nothing_wrong_costs_two_queries(
    evaluator: AlertEvaluator, django_assert_num_queries: Callable[[int], object]
) -> None:
    evaluator.tick()
    with django_assert_num_queries(2):  # type: ignore[attr-defined]
        evaluator.tick()
