"""Alerts about groups that are behind and about brokers, judged by what the watch has kept."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.db import connection
from django.test import Client
from django.utils import timezone
from pytest_django import Settings

from kafka_bridge.models import Alert, BrokerState, ProcessHeartbeat, SweptPartition
from kafka_bridge.operating.evaluation import AlertEvaluator
from kafka_bridge.operating.kafka_alarms import judge_broker_down, judge_brokers_missing, judge_lag

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _alerts_open_and_end_soon(settings: Settings) -> None:
    settings.ALERT_LAG_SECONDS = 0
    settings.ALERT_END_SECONDS = 1


def partition_behind(group: str, number: int, *, seconds: float | None, messages: int = 5) -> None:
    oldest_at = None if seconds is None else timezone.now() - timedelta(seconds=seconds)
    SweptPartition.objects.update_or_create(
        consumer_group=group,
        topic="orders",
        partition=number,
        defaults={"messages": messages, "oldest_at": oldest_at, "read_at": timezone.now()},
    )


def brokers(**fields: Any) -> None:
    """The brokers were asked just now, and all is well except for ``fields``."""
    now = timezone.now()
    well = {
        "asked_at": now, "answered_at": now, "silences": 0, "few_answers": 0, "brokers": ["1 at a:9092"], "problems": []
    }  # fmt: skip
    BrokerState.objects.update_or_create(id=1, defaults=well | fields)


def open_alerts() -> dict[str, str]:
    return dict(Alert.objects.filter(ended_at=None).values_list("rule", "summary"))


def process_behind(seconds: float, *, state: str) -> None:
    """A process that lives reports a partition of the notices as so far behind."""
    held = {"group": "notification", "topic": "orders", "partition": 2, "lag": 5, "lagMs": int(seconds * 1000)}
    now = timezone.now()
    ProcessHeartbeat.objects.create(
        id=uuid4(), role="consumer", host="here", pid=1, started_at=now, seen_at=now, turned_at=now,
        partitions=[held | {"state": state}],
    )  # fmt: skip


def a_minute_passes() -> None:
    """Every alert was true a minute ago for the last time."""
    with connection.cursor() as cursor:
        cursor.execute("UPDATE kafka_bridge_alert SET last_true_at = last_true_at - interval '1 minute'")


# Lag


def test_each_group_that_is_behind_has_an_alert_that_names_its_worst_partitions() -> None:
    brokers()
    for number in range(5):
        partition_behind("ranking", number, seconds=10 * (number + 1))
    partition_behind("issue", 0, seconds=2, messages=1)
    partition_behind("issue", 1, seconds=0.5)
    partition_behind("monitoring", 0, seconds=None, messages=0)
    AlertEvaluator().tick()
    found = open_alerts()
    assert found.keys() == {"lag-ranking", "lag-issue"}
    assert found["lag-ranking"].startswith("group ranking is behind: orders[4] by 5")
    assert found["lag-ranking"].endswith("; and 2 more")
    assert "orders[0] by 2." in found["lag-issue"]
    assert found["lag-issue"].endswith(" s, 1 message, no running process consumes it")


def test_groups_that_share_an_id_have_one_alert(settings: Settings) -> None:
    sharing = ("notification", "data-platform", "monitoring")
    settings.KAFKA_GROUPS = {**settings.KAFKA_GROUPS, **dict.fromkeys(sharing, "order-consumer-group")}
    for group in (*sharing, "ranking"):
        partition_behind(group, 0, seconds=30)
    found = {condition.name: condition.summary for condition in judge_lag()}
    assert found.keys() == {"lag-order-consumer-group", "lag-ranking"}
    assert found["lag-order-consumer-group"].startswith("group order-consumer-group is behind: orders[0] by 30.")
    assert found["lag-order-consumer-group"].count("orders[0]") == 1


def test_a_partition_that_retries_says_so(settings: Settings) -> None:
    process_behind(30, state="retrying")
    (condition,) = judge_lag()
    assert condition.summary == "group notification is behind: orders[2] by 30.0 s, 5 messages, retrying"


def test_a_partition_that_an_operator_paused_is_not_behind() -> None:
    process_behind(30, state="paused")
    assert [*judge_lag()] == []


def test_a_lag_opens_one_alert_which_ends_when_the_group_has_caught_up() -> None:
    brokers()
    partition_behind("issue", 0, seconds=60)
    evaluator = AlertEvaluator()
    for _ in range(3):
        evaluator.tick()
    assert [*open_alerts()] == ["lag-issue"]
    partition_behind("issue", 0, seconds=None, messages=0)
    a_minute_passes()
    evaluator.tick()
    assert Alert.objects.exclude(ended_at=None).get().rule == "lag-issue"


def test_how_long_a_lag_must_last_and_how_large_it_must_be_are_settings(settings: Settings) -> None:
    partition_behind("issue", 0, seconds=60)
    settings.ALERT_LAG_SECONDS = 10
    assert [condition.for_seconds for condition in judge_lag()] == [10]
    AlertEvaluator().tick()
    assert open_alerts() == {}
    settings.ALERT_LAG_MS = 100_000
    assert [*judge_lag()] == []
    settings.ALERT_LAG_MS = 0
    assert [*judge_lag()] == []


def test_prometheus_finds_the_lag_of_every_group_in_seconds(client: Client) -> None:
    partition_behind("issue", 0, seconds=60)
    partition_behind("ranking", 3, seconds=None)
    lines = client.get("/metrics").content.decode().splitlines()
    (issue, ranking) = [line.rsplit(" ", 1) for line in lines if line.startswith("consumer_lag_seconds{")]
    assert issue[0] == 'consumer_lag_seconds{group="issue",partition="0",topic="orders"}'
    assert 60 <= float(issue[1]) < 90
    assert ranking[1] == "0.0"


# Brokers


def test_the_third_silence_in_a_row_is_an_alert() -> None:
    brokers(silences=2)
    AlertEvaluator().tick()
    assert open_alerts() == {}
    brokers(silences=3)
    AlertEvaluator().tick()
    assert [*open_alerts()] == ["broker-down"]
    assert "has answered since 20" in open_alerts()["broker-down"]
    brokers()
    a_minute_passes()
    AlertEvaluator().tick()
    assert open_alerts() == {}


def test_partitions_that_cannot_be_written_are_named() -> None:
    brokers(problems=["orders[0] has no leader", "orders[1] has 1 in-sync replicas and needs 2"])
    (condition,) = judge_broker_down()
    assert condition.rule.severity == "critical"
    assert condition.summary == "orders[0] has no leader; orders[1] has 1 in-sync replicas and needs 2"


def test_the_second_answer_with_fewer_brokers_than_expected_is_an_alert(settings: Settings) -> None:
    settings.KAFKA_BROKERS_EXPECTED = 3
    brokers(few_answers=1)
    assert [*judge_brokers_missing()] == []
    brokers(few_answers=2, brokers=["1 at a:9092", "3 at c:9092"])
    (condition,) = judge_brokers_missing()
    assert condition.summary == "2 of 3 brokers are there: 1 at a:9092, 3 at c:9092"


def test_without_recent_answers_the_alert_neither_opens_nor_ends() -> None:
    a_minute_ago = timezone.now() - timedelta(minutes=1)
    brokers(silences=3, few_answers=2, asked_at=a_minute_ago)
    AlertEvaluator().tick()
    assert open_alerts() == {}
    brokers(silences=3, few_answers=2)
    AlertEvaluator().tick()
    assert open_alerts().keys() == {"broker-down", "brokers-missing"}
    brokers(asked_at=a_minute_ago)
    a_minute_passes()
    AlertEvaluator().tick()
    assert open_alerts().keys() == {"broker-down", "brokers-missing"}
