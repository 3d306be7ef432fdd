"""The page of alerts: what is open, what ended, and silences."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.test import Client
from uuid_utils.compat import uuid7

from common.postgres.clock import database_time
from kafka_bridge.models import Alert, AlertSilence
from kafka_bridge.operating.alert_lists import ended_alerts, open_alerts
from kafka_bridge.operating.alerts import AlertRule
from kafka_bridge.operating.silences import end_silence, silence_rule, silences
from tests.admin.pages import html_of, messages_of

PATH = "/ops/alerts"
NOW = datetime(2026, 7, 1, tzinfo=UTC)


def make_ended(rule: str, minutes: int, severity: str = "warning") -> Alert:
    """An alert that lasted a minute and ended so many minutes after ``NOW``."""
    end = NOW + timedelta(minutes=minutes)
    return Alert.objects.create(
        id=uuid7(), rule=rule, severity=severity, summary=f"{rule} at {minutes}", runbook="",
        started_at=end - timedelta(minutes=1), ended_at=end,
    )  # fmt: skip


def silence(client: Client, **values: Any) -> Any:
    return client.post(
        "/ops/alerts/silence", {"rule": "gate-admitted-refused", "seconds": 3600, "reason": "works"} | values
    )


def test_an_open_alert_is_shown_as_text_with_its_runbook(viewer: Client, alert: Alert) -> None:
    page = html_of(viewer.get(PATH))
    assert "Two gates differ &lt;b&gt;." in page
    assert "warning</span>" in page
    assert alert.runbook in page


def test_critical_alerts_come_first_then_the_oldest(db: None) -> None:
    for rule, severity, minutes in (("b", "warning", 1), ("c", "warning", 0), ("a", "critical", 2)):
        Alert.objects.create(
            rule=rule, severity=severity, summary="", runbook="", started_at=NOW + timedelta(minutes=minutes)
        )
    assert [alert.rule for alert in open_alerts()] == ["a", "c", "b"]


def test_ended_alerts_come_newest_first(db: None) -> None:
    for minutes in (2, 3, 1):
        make_ended("lag-issue", minutes)
    assert [alert.summary for alert in ended_alerts()] == [f"lag-issue at {minutes}" for minutes in (3, 2, 1)]
    assert {vars(alert)["lasted"] for alert in ended_alerts()} == {timedelta(minutes=1)}


def test_a_search_finds_the_ended_alerts_of_all_rules_with_the_text(db: None) -> None:
    for minutes, rule in enumerate(("lag-issue", "errors-issue", "lag-ranking", "lag-issue", "held")):
        make_ended(rule, minutes)
    Alert.objects.create(rule="lag-results", severity="warning", summary="open", runbook="")
    assert [alert.summary for alert in ended_alerts("lag-")] == ["lag-issue at 3", "lag-ranking at 2", "lag-issue at 0"]
    assert [alert.rule for alert in ended_alerts("issue")] == ["lag-issue", "errors-issue", "lag-issue"]
    assert vars(ended_alerts("held")[0])["lasted"] == timedelta(minutes=1)
    assert [alert.summary for alert in ended_alerts("lag-", limit=1)] == ["lag-issue at 3"]


@pytest.mark.parametrize("text", ["nothing", "%", "_", "\0", "' OR 1=1 --", "쿠폰", "x" * 5000])
def test_a_search_for_anything_else_finds_nothing(viewer: Client, text: str) -> None:
    make_ended("lag-issue", 1)
    response = viewer.get(PATH, {"rule": text})
    assert "lag-issue at 1" not in html_of(response)
    assert ended_alerts(text) == []


def test_a_rule_is_silenced_until_a_time_with_a_reason(operator: Client, rule: AlertRule) -> None:
    before = database_time()
    response = silence(operator, reason="Redis moves <tonight>")
    assert (response.status_code, response["Location"]) == (303, PATH)
    row = AlertSilence.objects.get()
    assert (row.rule, row.reason, row.actor) == (rule.name, "Redis moves <tonight>", "olga")
    assert before + timedelta(hours=1) <= row.until <= database_time() + timedelta(hours=1)
    page = operator.get(PATH)
    assert "Redis moves &lt;tonight&gt;" in html_of(page)
    assert f"{rule.name} is silenced until {row.until:%Y-%m-%d %H:%M} UTC." in messages_of(page)


def test_a_silence_is_replaced_by_the_next_and_can_be_ended(operator: Client, rule: AlertRule) -> None:
    silence(operator)
    silence(operator, seconds=86400, reason="longer")
    row = AlertSilence.objects.get()
    assert row.reason == "longer"
    assert row.until > database_time() + timedelta(hours=23)
    end = {"rule": rule.name, "reason": "mended"}
    assert operator.post("/ops/alerts/unsilence", end).status_code == 303
    assert not silences().exists()
    operator.post("/ops/alerts/unsilence", end)
    assert "not silenced any more" in messages_of(operator.get(PATH))[-1]


@pytest.mark.parametrize(
    "wrong",
    [
        {"rule": "no-such-rule"}, {"rule": ""}, {"rule": "gate-admitted-refusedX"}, {"rule": "a\0"}, {"rule": "x" * 65},
        {"seconds": "0"}, {"seconds": "3601"}, {"seconds": "x"},
        {"reason": ""}, {"reason": "   "}, {"reason": "x" * 501}, {"reason": "\0"},
    ],
)  # fmt: skip
def test_a_silence_that_makes_no_sense_is_refused_with_the_form(operator: Client, wrong: dict[str, str]) -> None:
    response = silence(operator, **wrong)
    assert response.status_code == 400
    assert 'class="errorlist"' in response.content.decode()
    assert not AlertSilence.objects.exists()


@pytest.mark.parametrize("wrong", [{"reason": " "}, {"reason": "x" * 501}, {"reason": "\0"}, {"rule": "a\0"}])
def test_a_silence_is_not_ended_without_a_reason(operator: Client, wrong: dict[str, str]) -> None:
    silence(operator)
    response = operator.post("/ops/alerts/unsilence", {"rule": "gate-admitted-refused", "reason": "mended"} | wrong)
    assert response.status_code == 400
    assert messages_of(response)[-1].startswith(("Reason:", "Rule:"))
    assert silences().exists()


def test_one_subject_of_a_rule_and_any_open_alert_can_be_silenced(operator: Client) -> None:
    assert silence(operator, rule="gate-admitted-refused-gate").status_code == 303
    Alert.objects.create(rule="of an older version", severity="warning", summary="", runbook="")
    assert silence(operator, rule="of an older version").status_code == 303
    assert AlertSilence.objects.count() == 2


def test_a_silence_that_is_over_is_not_shown(viewer: Client) -> None:
    silence_rule(rule="lag", seconds=-1, reason="was", actor="olga")
    assert not silences().exists()
    assert "No rule is silenced." in html_of(viewer.get(PATH))
    assert not end_silence(rule="lag", actor="olga", reason="mended")


def test_a_viewer_sees_silences_and_no_form_and_is_refused(viewer: Client, alert: Alert) -> None:
    silence_rule(rule=alert.rule, seconds=60, reason="works on Redis", actor="olga")
    page = html_of(viewer.get(PATH))
    assert "works on Redis" in page
    assert "/ops/alerts/silence" not in page
    assert "/ops/alerts/unsilence" not in page
    assert "?silence=" not in page
    response = silence(viewer, reason="mine")
    assert (response.status_code, "kafka_bridge.silence_alerts" in response.content.decode()) == (403, True)
    assert viewer.post("/ops/alerts/unsilence", {"rule": alert.rule}).status_code == 403
    assert AlertSilence.objects.get().reason == "works on Redis"


def test_a_silence_needs_the_token_of_its_form(operator: Client) -> None:
    strict = Client(enforce_csrf_checks=True)
    strict.cookies = operator.cookies
    assert silence(strict).status_code == 403
    assert not AlertSilence.objects.exists()


@pytest.mark.parametrize(
    ("silenced", "seconds", "shown"),
    [
        ("held-order-completed", 60, True), ("held", 60, True), ("held", -1, False), ("hel", 60, False),
        # The rule of another subject.
        ("held-order", 60, False), ("held%", 60, False), ("HELD", 60, False), ("order-completed", 60, False),
    ],
)  # fmt: skip
def test_a_silence_of_a_rule_is_one_of_all_its_subjects(
    viewer: Client, alert: Alert, silenced: str, seconds: int, shown: bool
) -> None:
    Alert.objects.update(rule="held-order-completed", runbook="docs/runbooks/held.md")
    silence_rule(rule=silenced, seconds=seconds, reason="works", actor="olga")
    for path in ("/ops/", PATH):
        assert (">silenced<" in html_of(viewer.get(path))) is shown


def test_an_alert_that_is_silenced_offers_the_end_of_the_silence(operator: Client, alert: Alert) -> None:
    offer = f'Silence<span class="unseen"> {alert.rule}'
    assert offer in html_of(operator.get(PATH))
    silence(operator)
    page = html_of(operator.get(PATH))
    assert offer not in page
    assert f'<a href="#silence">End the silence<span class="unseen"> of {alert.rule}</span></a>' in page
