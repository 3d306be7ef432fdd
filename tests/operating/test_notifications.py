"""Alerts reach the webhook: told once at the beginning and once at the end, whatever happens on the way."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import transaction
from django.db.models import F
from django.db.models.functions import Now
from pytest_django import Settings

from common.processes.lifecycle import StopFlag
from devstack import wait_until
from kafka_bridge.models import Alert, AlertNotification, AlertSilence
from kafka_bridge.operating import alarm_threads
from kafka_bridge.operating.alarm_threads import Notifier
from kafka_bridge.operating.alerts import AlertRule, end_rules, open_alert
from kafka_bridge.operating.notifications import send_next
from kafka_bridge.operating.silences import end_silence
from tests.support.provider import HANG, Answer, Call, Provider, close_http_client
from tests.support.threads import in_another_session

pytestmark = pytest.mark.django_db(transaction=True)

FLOOD = AlertRule("flood", "critical")
# A rule with an alert per subject.
TOPIC = AlertRule("topic", "critical")


@pytest.fixture
def closed_webhook(settings: Settings) -> Iterator[Provider]:
    """A webhook that takes no connection before its ``up``."""
    webhook = Provider()
    settings.ALERT_WEBHOOK_URL = webhook.url
    yield webhook
    webhook.release()
    close_http_client()
    webhook.close()


@pytest.fixture
def webhook(closed_webhook: Provider) -> Provider:
    closed_webhook.up()
    return closed_webhook


def send_all() -> None:
    while send_next():
        pass


def time_passes() -> None:
    """All that waits for its next try is due."""
    AlertNotification.objects.update(next_try_at=Now())


def told(webhook: Provider) -> list[tuple[str, str]]:
    """What the webhook was told, in its order: rule and phase."""
    return [(json.loads(call.body)["rule"], key.partition(":")[2]) for key, call in webhook.effects.items()]


def silence(rule: str) -> AlertSilence:
    return AlertSilence.objects.create(rule=rule, until=Now() + timedelta(hours=1), reason="known", actor="operator")


def silence_ends(rule: str) -> None:
    AlertSilence.objects.filter(rule=rule).update(until=Now())


# The call


def test_an_alert_is_told_once_at_its_beginning_and_once_at_its_end(webhook: Provider, settings: Settings) -> None:
    settings.ENVIRONMENT_NAME = "staging"
    open_alert(FLOOD, "the water rises\nin the cellar")
    open_alert(FLOOD, "the water still rises")
    send_all()
    alert = Alert.objects.get()
    end_rules([FLOOD.name])
    Alert.objects.update(ended_at=F("started_at") + timedelta(seconds=83))
    send_all()
    first, second = webhook.calls
    assert [first.key, second.key] == [f"{alert.id}:start", f"{alert.id}:end"]
    assert json.loads(first.body) == {
        "rule": "flood",
        "severity": "critical",
        "summary": "the water rises\nin the cellar",
        "startedAt": alert.started_at.isoformat().replace("+00:00", "Z"),
        "endedAt": None,
        "runbook": "docs/runbooks/flood.md",
        "text": "[staging] critical: flood: the water rises in the cellar (see docs/runbooks/flood.md)",
    }
    ended = json.loads(second.body)
    assert datetime.fromisoformat(ended["endedAt"]) == alert.started_at + timedelta(seconds=83)
    assert ended["text"].startswith("[staging] ended after 1 min 23 s: flood: the water rises in the cellar (see ")
    assert first.headers["content-type"] == "application/json"
    traces = [call.headers["traceparent"].split("-") for call in (first, second)]
    assert traces[0][1] == traces[1][1] == alert.id.hex
    assert not AlertNotification.objects.exists()


def test_an_alert_that_has_ended_before_its_beginning_was_told_is_told_in_order(webhook: Provider) -> None:
    open_alert(FLOOD, "the water rises")
    end_rules([FLOOD.name])
    Alert.objects.update(ended_at=F("started_at") + timedelta(minutes=83))
    send_all()
    assert told(webhook) == [("flood", "start"), ("flood", "end")]
    beginning, end = (json.loads(call.body) for call in webhook.calls)
    assert beginning["endedAt"] is None
    assert end["text"] == "ended after 1 h 23 min: flood: the water rises (see docs/runbooks/flood.md)"


def test_a_long_summary_is_whole_in_its_field_and_cut_in_the_line_for_chats(webhook: Provider) -> None:
    open_alert(FLOOD, "x" * 5000)
    send_all()
    body = json.loads(webhook.calls[0].body)
    assert body["summary"] == "x" * 5000
    assert len(body["text"]) == 1000
    assert body["text"].endswith("xxx... (see docs/runbooks/flood.md)")


def test_an_alert_that_is_rolled_back_is_not_told(webhook: Provider) -> None:
    with transaction.atomic():
        open_alert(FLOOD, "the water rises")
        transaction.set_rollback(True)
    send_all()
    assert not webhook.calls


# Trouble


def test_a_webhook_that_is_away_is_told_afterwards(closed_webhook: Provider) -> None:
    open_alert(FLOOD, "the water rises")
    end_rules([FLOOD.name])
    assert send_next()
    assert not send_next(), "the next try comes later, and the end not before the beginning"
    kept = AlertNotification.objects.get(phase="start")
    assert (kept.attempts, kept.last_error) == (1, "no connection (ConnectError)")
    closed_webhook.up()
    time_passes()
    send_all()
    assert told(closed_webhook) == [("flood", "start"), ("flood", "end")]


@pytest.mark.parametrize("trouble", [301, 401, 404, 422, 500, 503])
def test_what_is_refused_is_kept_and_told_later(
    trouble: Answer, webhook: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    webhook.answer = lambda call: trouble if call.number <= 2 else 200
    open_alert(FLOOD, "the water rises")
    for _ in range(3):
        send_all()
        time_passes()
    assert [call.key for call in webhook.calls] == [f"{Alert.objects.get().id}:start"] * 3
    assert not AlertNotification.objects.exists()
    # At most one line a minute for the same reason.
    (line,) = (line for line in caplog.messages if f"answered {trouble}" in line)
    assert "check ALERT_WEBHOOK_URL" in line
    assert webhook.url not in caplog.text


def test_the_pause_between_two_tries_doubles_up_to_a_minute(webhook: Provider) -> None:
    webhook.answer = lambda call: 500
    open_alert(FLOOD, "the water rises")
    assert [pause_after_a_try() for _ in range(6)] == [5, 10, 20, 40, 60, 60]


def test_a_webhook_that_asks_for_time_gets_it(webhook: Provider) -> None:
    webhook.answer = lambda call: (429, {"Retry-After": ["90", "100000"][call.number - 1]})
    open_alert(FLOOD, "the water rises")
    assert [pause_after_a_try(), pause_after_a_try()] == [90, 300]


def pause_after_a_try() -> int:
    time_passes()
    assert send_next()
    pause: timedelta = AlertNotification.objects.values_list(F("next_try_at") - Now(), flat=True).get()
    return round(pause.total_seconds())


def test_alerts_that_are_refused_hold_up_no_others(webhook: Provider) -> None:
    webhook.answer = lambda call: 422 if b"the first" in call.body else 200
    for number in ("first", "second", "third"):
        open_alert(FLOOD, f"the {number} flood", subject=number)
    send_all()
    assert told(webhook) == [("flood-second", "start"), ("flood-third", "start")]


def test_two_senders_do_not_send_the_same_notification(webhook: Provider) -> None:
    answered = threading.Event()
    webhook.answer = lambda call: 200 if answered.wait(10) else 500
    open_alert(FLOOD, "the water rises")
    other = in_another_session(send_next)
    wait_until(lambda: webhook.calls, 5, "not called")
    assert not send_next()
    answered.set()
    assert other.result(10)
    assert len(webhook.calls) == 1


def test_a_slow_webhook_holds_up_no_judgement_and_no_call_lasts_long(webhook: Provider) -> None:
    webhook.answer = lambda call: HANG
    open_alert(FLOOD, "the water rises")
    began_at = time.monotonic()
    other = in_another_session(send_next)
    wait_until(lambda: webhook.calls, 5, "not called")
    end_rules([FLOOD.name])
    open_alert(FLOOD, "the water rises again")
    assert not other.done(), "the alert was ended and opened anew during the call"
    assert other.result(10)
    assert time.monotonic() - began_at < 5
    kept = AlertNotification.objects.order_by("id").first()
    assert kept is not None
    assert (kept.attempts, kept.last_error) == (1, "no answer within 3 s")


def test_without_a_webhook_nothing_is_kept_for_one_that_is_configured_later(
    webhook: Provider, settings: Settings
) -> None:
    url, settings.ALERT_WEBHOOK_URL = settings.ALERT_WEBHOOK_URL, ""
    open_alert(FLOOD, "long ago", subject="old")
    AlertNotification.objects.update(created_at=Now() - timedelta(minutes=11))
    open_alert(FLOOD, "just now", subject="new")
    send_all()
    assert not webhook.calls
    settings.ALERT_WEBHOOK_URL = url
    send_all()
    assert told(webhook) == [("flood-new", "start")]


# Silences


def test_a_silenced_alert_that_lasts_is_told_when_the_silence_ends(webhook: Provider) -> None:
    silence("flood")
    open_alert(FLOOD, "the water rises")
    send_all()
    assert not webhook.calls
    silence_ends("flood")
    send_all()
    assert told(webhook) == [("flood", "start")]


def test_an_alert_that_begins_and_ends_within_a_silence_is_never_told(webhook: Provider) -> None:
    silence("flood")
    open_alert(FLOOD, "the water rises")
    end_rules([FLOOD.name])
    send_all()
    silence_ends("flood")
    send_all()
    assert not webhook.calls
    assert not AlertNotification.objects.exists()


def test_an_alert_within_a_silence_that_no_sender_saw_is_never_told(webhook: Provider) -> None:
    silence("flood")
    open_alert(FLOOD, "the water rises")
    end_rules([FLOOD.name])
    assert end_silence(rule="flood", actor="olga", reason="over")
    send_all()
    assert not webhook.calls


def test_the_end_of_an_alert_that_was_told_before_the_silence_is_told_within_it(webhook: Provider) -> None:
    open_alert(FLOOD, "the water rises")
    send_all()
    silence("flood")
    end_rules([FLOOD.name])
    send_all()
    assert told(webhook) == [("flood", "start"), ("flood", "end")]


def test_an_alert_that_began_before_the_silence_and_is_not_told_yet_is_told_after_it(closed_webhook: Provider) -> None:
    open_alert(FLOOD, "the water rises")
    send_all()
    silence("flood")
    end_rules([FLOOD.name])
    closed_webhook.up()
    time_passes()
    send_all()
    assert not closed_webhook.calls
    silence_ends("flood")
    send_all()
    assert told(closed_webhook) == [("flood", "start"), ("flood", "end")]


def test_a_silence_of_a_rule_is_one_of_all_its_subjects(webhook: Provider) -> None:
    silence("topic")
    open_alert(TOPIC, "it is missing", subject="orders")
    open_alert(FLOOD, "the water rises")
    send_all()
    assert told(webhook) == [("flood", "start")]


def test_a_silence_of_one_subject_is_none_of_another_whose_name_it_begins(webhook: Provider) -> None:
    silence("topic-order")
    open_alert(TOPIC, "it is missing", subject="order")
    open_alert(TOPIC, "it is missing", subject="order-completed")
    send_all()
    assert told(webhook) == [("topic-order-completed", "start")]


# The threads


@pytest.fixture
def notifier() -> Iterator[Callable[[Callable[[], float | None]], Notifier]]:
    """Starts the thread with a function that says when the alarms were judged; it is stopped at the end."""
    stop = StopFlag()
    started: list[Notifier] = []

    def start(judged_at: Callable[[], float | None]) -> Notifier:
        started.append(Notifier(stop, judged_at))
        started[-1].start()
        return started[-1]

    yield start
    stop.request()
    for thread in started:
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture
def deadman(closed_webhook: Provider, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Provider:
    """A dead man's switch that is to be called every 0.2 s."""
    settings.ALERT_WEBHOOK_URL = ""
    settings.ALERT_DEADMAN_URL = closed_webhook.url
    for name in ("DEADMAN_SECONDS", "DEADMAN_RETRY_SECONDS", "POLL_SECONDS"):
        monkeypatch.setattr(alarm_threads, name, 0.2)
    closed_webhook.up()
    return closed_webhook


def test_the_dead_mans_switch_is_called_while_the_alarms_are_judged_and_not_after_that(
    deadman: Provider, notifier: Any
) -> None:
    judged_at = [time.monotonic()]
    notifier(lambda: judged_at[0])
    wait_until(lambda: len(deadman.calls) >= 3, 10, "not called")
    assert len({call.key for call in deadman.calls}) == len(deadman.calls)
    judged_at[0] -= 16
    count = settled_count(deadman)
    judged_at[0] = time.monotonic()
    wait_until(lambda: len(deadman.calls) > count, 10, "not called again")


def settled_count(deadman: Provider) -> int:
    """The number of calls, which must not grow within five times the interval."""
    # A call may have been under way.
    time.sleep(0.2)
    count = len(deadman.calls)
    time.sleep(1)
    assert len(deadman.calls) == count
    return count


def test_a_process_that_does_not_judge_does_not_call_the_dead_mans_switch(
    deadman: Provider, settings: Settings, notifier: Any
) -> None:
    settings.ALERT_WEBHOOK_URL = deadman.url
    open_alert(FLOOD, "the water rises")
    notifier(lambda: None)
    wait_until(lambda: told(deadman), 10, "not told")
    assert len(deadman.calls) == 1


def test_a_dead_mans_switch_that_does_not_answer_is_called_again_and_delays_no_notification_for_long(
    deadman: Provider, settings: Settings, notifier: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    settings.ALERT_WEBHOOK_URL = deadman.url

    def answer(call: Call) -> Answer:
        return 200 if b"flood" in call.body else 404

    deadman.answer = answer
    open_alert(FLOOD, "the water rises")
    notifier(time.monotonic)
    wait_until(lambda: told(deadman) and len(deadman.calls) >= 3, 10, "not called")
    assert sum("check ALERT_DEADMAN_URL" in line for line in caplog.messages) <= 1
    assert deadman.url not in caplog.text
