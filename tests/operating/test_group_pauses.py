"""Pausing and resuming of groups, partitions and workers: the service, the command and the alarm."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.utils import timezone
from pytest_django import Settings

from common.processes.lifecycle import StopFlag
from devstack import wait_until
from kafka_bridge.errors import UnknownTarget
from kafka_bridge.models import GroupPause, OperatorAction, SweptPartition
from kafka_bridge.operating.group_pauses import PauseTarget, find_target, pause, pauses_of, resume
from kafka_bridge.operating.heartbeat import Heartbeat
from kafka_bridge.operating.kafka_alarms import judge_lag, judge_paused
from kafka_bridge.operating.pause_watch import PauseWatch
from kafka_bridge.operating.worker_command import WorkerCommand
from kafka_bridge.registry import prefixed
from tests.support.threads import in_another_session

pytestmark = pytest.mark.django_db(transaction=True)

TOPIC = "coupon-issue-request"
OLGA: dict[str, Any] = {"actor": "olga", "reason": "wrong terms"}


def test_a_pause_that_is_there_stays_as_it_is() -> None:
    first, is_new = pause(PauseTarget("issue"), **OLGA)
    assert is_new
    second, is_new = pause(PauseTarget("issue"), actor="ted", reason="other")
    assert (second.pk, second.actor, second.reason, is_new) == (first.pk, "olga", "wrong terms", False)
    assert OperatorAction.objects.get().action == "group.pause"


def test_a_resume_ends_exactly_its_pause_and_is_audited_with_what_it_ended() -> None:
    part = find_target("issue", TOPIC, 3)
    for target in (PauseTarget("issue"), part):
        pause(target, **OLGA)
    assert resume(PauseTarget("issue"), actor="ted", reason="done")
    assert [str(left) for left in pauses_of("issue")] == [f"issue: {prefixed(TOPIC)}[3]"]
    assert not resume(PauseTarget("issue"), actor="ted", reason="done")
    action = OperatorAction.objects.latest("id")
    assert (action.action, action.subject, action.actor, action.reason) == ("group.resume", "issue", "ted", "done")
    assert (action.before["by"], action.before["reason"]) == ("olga", "wrong terms")  # type: ignore[index]


def test_two_operators_who_pause_at_the_same_moment_make_one_pause() -> None:
    target = find_target("issue", TOPIC, 1)
    running = [in_another_session(lambda: pause(target, **OLGA)[1]) for _ in range(4)]
    assert sorted(one.result(30) for one in running) == [False, False, False, True]
    assert GroupPause.objects.count() == OperatorAction.objects.count() == 1


def test_a_target_is_named_by_group_or_id_and_topic_with_or_without_prefix(settings: Settings) -> None:
    settings.KAFKA_TOPIC_PREFIX = "t-"
    expected = PauseTarget("issue", f"t-{TOPIC}", 4)
    for name in ("issue", "t-coupon-issue-consumer-group", "coupon-issue-consumer-group"):
        for topic in (TOPIC, f"t-{TOPIC}"):
            assert find_target(name, topic, 4) == expected
    assert find_target("dead-letters", f"{TOPIC}.DLT", 0).topic == f"t-{TOPIC}.DLT"


def test_an_id_that_may_be_that_of_two_groups_is_refused(settings: Settings) -> None:
    settings.KAFKA_TOPIC_PREFIX = "t-"
    settings.KAFKA_GROUPS = {**settings.KAFKA_GROUPS, "issue": "a", "results": "t-a"}
    assert [find_target(name).name for name in ("a", "t-t-a")] == ["issue", "results"]
    with pytest.raises(UnknownTarget, match="'t-a' is the id of issue and of results, with the prefix and without"):
        find_target("t-a")


def test_a_name_of_a_worker_means_the_worker(settings: Settings) -> None:
    settings.KAFKA_TOPIC_PREFIX = "re"
    settings.KAFKA_GROUPS = {**settings.KAFKA_GROUPS, "issue": "lay"}
    assert find_target("relay") == PauseTarget("relay")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("isue",), "there is no group 'isue'; known: .*issue, .*results, "),
        (("isue",), "relay"),
        (("issue", "order-completed", 0), f"issue reads no topic 'order-completed'; it reads: {TOPIC}"),
        (("issue", TOPIC, 5), f"{TOPIC} has no partition 5; it has 0 to 4"),
        (("relay", TOPIC, 0), "relay has no partitions"),
        (("issue-worker", TOPIC, 0), "issue-worker has no partitions"),
    ],
)
def test_an_unknown_target_is_refused_with_what_exists(arguments: Any, text: str) -> None:
    with pytest.raises(UnknownTarget, match=text.replace("[", r"\[")):
        find_target(*arguments)


def test_partitions_that_were_added_on_the_broker_can_be_paused() -> None:
    SweptPartition.objects.create(
        consumer_group="issue", topic=prefixed(TOPIC), partition=7, messages=0, read_at=timezone.now()
    )
    assert find_target("issue", TOPIC, 7).partition == 7


# Groups that share an id

SHARED = "order-consumer-group"
SHARING = ("notification", "data-platform", "monitoring")


@pytest.fixture
def shared(settings: Settings) -> None:
    settings.KAFKA_GROUPS = {**settings.KAFKA_GROUPS, **dict.fromkeys(SHARING, SHARED)}


@pytest.mark.usefixtures("shared")
def test_groups_that_share_an_id_are_paused_and_resumed_together_by_the_name_of_any_or_the_id() -> None:
    _, is_new = pause(find_target("data-platform"), **OLGA)
    assert is_new
    assert set(GroupPause.objects.values_list("consumer_group", flat=True)) == {*SHARING}
    assert {row.subject for row in OperatorAction.objects.all()} == {*SHARING}
    assert resume(find_target(SHARED), actor="ted", reason="done")
    assert not GroupPause.objects.exists()
    assert not resume(find_target("monitoring"), actor="ted", reason="done")


@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize("name", [SHARED, f"p-{SHARED}"])
def test_a_shared_id_is_taken_with_and_without_the_prefix(
    name: str, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    settings.KAFKA_TOPIC_PREFIX = "p-"
    assert "they share an id) is paused, since " in run(capsys, name, "pause")
    assert set(GroupPause.objects.values_list("consumer_group", flat=True)) == {*SHARING}


@pytest.mark.usefixtures("shared")
def test_a_partition_is_paused_for_those_of_them_that_read_its_topic() -> None:
    pause(find_target("monitoring", "order-cancelled", 1), **OLGA)
    assert set(GroupPause.objects.values_list("consumer_group", flat=True)) == {"data-platform", "monitoring"}
    assert [str(row) for row in pauses_of("notification")] == [
        f"{name}: {prefixed('order-cancelled')}[1]" for name in ("data-platform", "monitoring")
    ]


@pytest.mark.usefixtures("shared")
def test_their_pause_names_all_that_stop_in_the_answer_and_in_one_alert(capsys: pytest.CaptureFixture[str]) -> None:
    said = run(capsys, "data-platform", "pause")
    assert said.startswith("data-platform (with notification, monitoring: they share an id) is paused, since ")
    (condition,) = judge_paused()
    assert condition.name == f"paused-{SHARED}"
    for name in SHARING:
        assert f"{name} is paused by " in condition.summary
    assert "they share an id) is resumed" in run(capsys, "monitoring", "resume")


def test_what_was_paused_together_stays_paused_under_ids_of_its_own(settings: Settings) -> None:
    own = settings.KAFKA_GROUPS
    settings.KAFKA_GROUPS = {**own, **dict.fromkeys(SHARING, SHARED)}
    pause(PauseTarget("monitoring"), **OLGA)
    settings.KAFKA_GROUPS = own
    assert {condition.name for condition in judge_paused()} == {f"paused-{name}" for name in SHARING}
    resume(PauseTarget("monitoring"), actor="ted", reason="done")
    assert {row.consumer_group for row in GroupPause.objects.all()} == {"notification", "data-platform"}


# The command


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    call_command("control_group", *arguments, "--reason", "wrong terms")
    return capsys.readouterr().out


def test_the_command_pauses_and_resumes_and_says_what_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "issue", "pause").startswith("issue is paused, since ")
    assert run(capsys, "issue", "pause").startswith("issue was paused already, since ")
    name = f"issue: {prefixed(TOPIC)}[2]"
    assert run(capsys, "issue", "pause", "--partition", f"{TOPIC}:2").startswith(f"{name} is paused")
    lines = run(capsys, "issue", "resume").splitlines()
    assert (lines[0], lines[1].startswith(f"still paused: {name}, since ")) == ("issue is resumed", True)
    assert run(capsys, "relay", "resume") == "relay was not paused\n"
    actors = set(OperatorAction.objects.values_list("actor", flat=True))
    assert len(actors) == 1
    assert actors.pop().endswith(" at the shell")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("isue", "pause", "--reason", "x"), "there is no group 'isue'; known: "),
        (("issue", "pause", "--reason", "x", "--partition", "nothing:1"), "issue reads no topic 'nothing'"),
        (("issue", "pause", "--reason", "x", "--partition", "nothing"), "is not TOPIC:N"),
        (("issue", "pause", "--reason", " "), "--reason must say why"),
        (("issue", "pause"), "required: --reason"),
        (("issue", "stop", "--reason", "x"), "invalid choice"),
    ],
)
def test_the_command_refuses_with_one_clear_line(arguments: tuple[str, ...], text: str) -> None:
    with pytest.raises(CommandError, match=text):
        call_command("control_group", *arguments)
    assert not GroupPause.objects.exists()


# The alarm


def test_what_is_paused_raises_paused_instead_of_lag(settings: Settings) -> None:
    settings.ALERT_LAG_SECONDS = 10
    for number in range(3):
        SweptPartition.objects.create(
            consumer_group="issue", topic=prefixed(TOPIC), partition=number, messages=5, read_at=timezone.now(),
            oldest_at=timezone.now() - timedelta(minutes=5),
        )  # fmt: skip
    assert [condition.name for condition in judge_lag()] == ["lag-issue"]
    pause(find_target("issue", TOPIC, 1), **OLGA)
    (lag,), (paused,) = judge_lag(), judge_paused()
    assert f"{TOPIC}[1]" not in lag.summary
    assert (paused.name, paused.for_seconds) == ("paused-issue", 10)
    assert paused.summary.startswith(f"issue: {prefixed(TOPIC)}[1] is paused by olga since ")
    assert paused.summary.endswith("Z: wrong terms")
    pause(PauseTarget("issue"), **OLGA)
    pause(PauseTarget("relay"), **OLGA)
    assert [*judge_lag()] == []
    assert [condition.name for condition in judge_paused()] == ["paused-issue", "paused-relay"]
    GroupPause.objects.all().delete()
    assert ([condition.name for condition in judge_lag()], [*judge_paused()]) == (["lag-issue"], [])


# What processes know of it


def test_a_process_knows_of_its_own_groups_in_one_query(django_assert_num_queries: Any) -> None:
    watch = PauseWatch(["issue", "results"])
    pause(find_target("issue", TOPIC, 1), **OLGA)
    pause(PauseTarget("ranking"), **OLGA)
    with django_assert_num_queries(1):
        watch.read()
    topic = prefixed(TOPIC)
    assert [watch.is_paused("issue", topic, number) for number in (0, 1)] == [False, True]
    assert not watch.is_paused("issue")
    assert not watch.is_paused("results", topic, 1)
    pause(PauseTarget("issue"), **OLGA)
    watch.read()
    assert watch.is_paused("issue", topic, 0)


def test_a_process_that_cannot_read_keeps_what_it_knows_and_one_that_never_could_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known, new = PauseWatch(["issue"]), PauseWatch(["issue"])
    pause(PauseTarget("issue"), **OLGA)
    known.read()
    resume(PauseTarget("issue"), **OLGA)
    with monkeypatch.context() as patched:
        patched.setitem(connection.settings_dict, "PORT", "1")
        connection.close()
        for watch in (known, new):
            with pytest.raises(Exception, match="refused"):
                watch.read()
    assert known.is_paused("issue")
    assert new.is_paused("issue")
    known.read()
    assert not known.is_paused("issue")


def test_a_run_that_ends_when_idle_begins_once_the_pauses_are_known(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Else it would end at once, as if an operator had paused everything."""
    command = WorkerCommand()
    command.heartbeat = Heartbeat("relay")
    with monkeypatch.context() as patched:
        patched.setitem(connection.settings_dict, "PORT", "1")
        watch = in_another_session(lambda: command.watch_pauses(["relay"], first=StopFlag()))
        wait_until(lambda: "pauses not read" in caplog.text, 10, "it does not try to read them")
        assert not watch.done()
    assert not watch.result(10).is_paused("relay")


def test_the_heartbeats_thread_reads_the_pauses_every_second_beside_its_beats() -> None:
    heartbeat, watch = Heartbeat("consumer"), PauseWatch(["issue"])
    heartbeat.every_second(watch.read)
    heartbeat.start()
    try:
        wait_until(lambda: not watch.is_paused("issue"), 10, "it never reads")
        pause(PauseTarget("issue"), **OLGA)
        wait_until(lambda: watch.is_paused("issue"), 2, "it does not read every second")
        resume(PauseTarget("issue"), **OLGA)
        wait_until(lambda: not watch.is_paused("issue"), 2, "it does not read every second")
    finally:
        heartbeat.end()
