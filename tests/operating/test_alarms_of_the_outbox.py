"""Alarms about the outbox: rows that no relay sends, and rows that are held."""

from __future__ import annotations

import timeit

import pytest
from django.db import connection
from pytest_django import Settings

from common.processes.lifecycle import StopFlag
from devstack import wait_until
from kafka_bridge.client import ensure_topics
from kafka_bridge.models import HeldMessage, OutboxHold, OutboxMessage
from kafka_bridge.operating.evaluation import AlertEvaluator
from kafka_bridge.operating.outbox_alarms import HELD, OUTBOX_AGE, judge_held, judge_outbox_age
from kafka_bridge.relaying.relay import Relay
from tests.operating.alarms import evaluator_of, move_into_the_past, open_now, open_rules
from tests.support.kafka import lose_topics, relay_everything
from tests.support.outbox import TOPIC, publish_orders
from tests.support.plans import queries_of, reads_of

pytestmark = pytest.mark.django_db(transaction=True)

OUTBOX, HELD_ROWS = "kafka_bridge_outboxmessage", "kafka_bridge_heldmessage"
HOLDS = "kafka_bridge_outboxhold"


@pytest.fixture(autouse=True)
def _alerts_end_at_once(settings: Settings) -> None:
    settings.ALERT_END_SECONDS = 0


@pytest.fixture
def age(monkeypatch: pytest.MonkeyPatch) -> AlertEvaluator:
    monkeypatch.setattr("kafka_bridge.operating.outbox_alarms._SECONDS_TO_SEND", 0.0)
    return evaluator_of(OUTBOX_AGE, judge_outbox_age)


@pytest.fixture
def held() -> AlertEvaluator:
    return evaluator_of(HELD, judge_held)


# Rows that wait for a relay


@pytest.mark.usefixtures("topics")
def test_a_row_that_no_relay_sends_opens_an_alert_which_ends_once_it_is_sent(age: AlertEvaluator) -> None:
    publish_orders([1, 2])
    age.tick()
    assert open_rules() == []
    move_into_the_past(OUTBOX, ["created_at"], 61)
    age.tick()
    ((rule, summary),) = open_now()
    assert rule == "outbox-age"
    assert summary.startswith("an outbox row has waited 61 s to be published, more than 60 s")
    relay_everything()
    age.tick()
    assert open_rules() == []


def test_a_row_that_was_old_when_it_became_visible_is_given_time_to_be_sent() -> None:
    evaluator = evaluator_of(OUTBOX_AGE, judge_outbox_age)
    publish_orders([1])
    move_into_the_past(OUTBOX, ["created_at"], 61)
    evaluator.tick()
    assert open_rules() == []


def test_held_rows_do_not_count_as_old(age: AlertEvaluator) -> None:
    publish_orders([1])
    row = OutboxMessage.objects.get()
    HeldMessage.objects.create(message_id=row.id, shard=row.shard, topic=row.topic, reason="topic")
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO kafka_bridge_relaylease (shard, sent_through) VALUES (%s, %s)", [row.shard, row.id])
    move_into_the_past(OUTBOX, ["created_at"], 3600)
    age.tick()
    assert open_rules() == []


def test_the_age_of_the_outbox_is_a_setting(age: AlertEvaluator, settings: Settings) -> None:
    publish_orders([1])
    move_into_the_past(OUTBOX, ["created_at"], 3600)
    settings.ALERT_OUTBOX_SECONDS = 7200
    age.tick()
    assert open_rules() == []
    settings.ALERT_OUTBOX_SECONDS = 0
    age.tick()
    assert open_rules() == []


# Held topics and keys


def test_a_key_that_an_operator_holds_opens_an_alert_until_it_is_released(held: AlertEvaluator) -> None:
    OutboxHold.objects.create(topic=TOPIC, key=b"4711", reason="wrong price, ticket 12")
    OutboxHold.objects.create(topic=TOPIC, key=b"\xff\0", reason="odd")
    held.tick()
    assert open_rules() == []
    move_into_the_past(HOLDS, ["created_at"], 61)
    held.tick()
    held.tick()
    assert open_rules() == [f"held-{TOPIC}-4711", f"held-{TOPIC}-\\xff\\0"]
    assert "key 4711 of topic order-completed is held by an operator since" in open_now()[0][1]
    assert "(wrong price, ticket 12)" in open_now()[0][1]
    OutboxHold.objects.all().delete()
    held.tick()
    assert open_rules() == []


@pytest.mark.usefixtures("topics")
def test_a_held_topic_has_one_alert_that_of_the_relay(held: AlertEvaluator) -> None:
    OutboxHold.objects.create(topic=TOPIC, reason="their consumer is broken")
    publish_orders([1])
    move_into_the_past(HOLDS, ["created_at"], 3600)
    relay = Relay()
    wait_until(lambda: bool(relay.relay_batch(StopFlag())), 30, "the relay reads nothing")
    relay.close()
    move_into_the_past(HELD_ROWS, ["created_at"], 3600)
    relay_alert = [rule for rule in open_rules() if rule.startswith("topic-")]
    assert len(relay_alert) == 1
    held.tick()
    assert open_rules() == relay_alert


def test_a_held_topic_that_no_relay_reports_opens_an_alert(held: AlertEvaluator) -> None:
    OutboxHold.objects.create(topic=TOPIC, reason="their consumer is broken")
    HeldMessage.objects.create(message_id=1, shard=1, topic="coupon-issue-request", reason="topic")
    HeldMessage.objects.create(message_id=2, shard=1, topic="coupon-issue-response", reason="key")
    held.tick()
    assert open_rules() == []
    move_into_the_past(HOLDS, ["created_at"], 61)
    move_into_the_past(HELD_ROWS, ["created_at"], 61)
    held.tick()
    assert open_rules() == ["held-coupon-issue-request", "held-order-completed"]
    assert "rows of topic coupon-issue-request are held since" in open_now()[0][1]
    assert "(their consumer is broken), and no relay reports it: is a relay running?" in open_now()[1][1]
    OutboxHold.objects.all().delete()
    HeldMessage.objects.all().delete()
    held.tick()
    assert open_rules() == []


def test_a_topic_lost_while_rows_wait_is_reported_by_the_relay_alone(
    held: AlertEvaluator, topics: str, settings: Settings
) -> None:
    lose_topics(TOPIC)
    try:
        publish_orders([1, 2])
        relay = Relay()
        wait_until(lambda: bool(relay.relay_batch(StopFlag())), 30, "the relay reads nothing")
        relay.close()
        move_into_the_past(HELD_ROWS, ["created_at"], 3600)
        held.tick()
        assert open_rules() == [f"topic-{topics}{TOPIC}"]
    finally:
        ensure_topics(settings.KAFKA_ROUTES)


def test_how_long_something_may_be_held_is_a_setting(held: AlertEvaluator, settings: Settings) -> None:
    OutboxHold.objects.create(topic=TOPIC, key=b"1", reason="")
    move_into_the_past(HOLDS, ["created_at"], 61)
    settings.ALERT_HELD_SECONDS = 0
    held.tick()
    assert open_rules() == []


# Many rows


ROWS = 200_000
# All but the last ten are published. In the list of held rows are as many of each topic.
_FILL = f"""
    INSERT INTO kafka_bridge_outboxmessage (id, event_id, event_type, topic, key, payload, shard, created_at)
    SELECT n, lpad(to_hex(n), 32, '0')::uuid, 'e', 't', 'k', '{{}}', n % 64, statement_timestamp() - interval '1 hour'
    FROM generate_series(1, {ROWS}) n;
    INSERT INTO kafka_bridge_relaylease (shard, position, sent_through, gaps)
    SELECT n, {ROWS} - 1000, {ROWS} - 10, int8multirange(int8range({ROWS} - 500, {ROWS} - 499))
    FROM generate_series(0, 63) n;
    ANALYZE kafka_bridge_outboxmessage, kafka_bridge_relaylease;
"""
_FILL_HELD = """
    INSERT INTO kafka_bridge_heldmessage (message_id, shard, topic, reason, created_at)
    SELECT n, n % 64, 'topic-' || n % 3, CASE n % 3 WHEN 0 THEN 'key' ELSE 'topic' END,
           statement_timestamp() - interval '1 hour'
    FROM generate_series(1, 100000) n;
    ANALYZE kafka_bridge_heldmessage;
"""


@pytest.fixture
def many_rows(transactional_db: None) -> None:
    with connection.cursor() as cursor:
        cursor.execute(_FILL)
        cursor.execute(_FILL_HELD)


def test_with_many_rows_the_alarms_read_a_few_by_index(
    many_rows: None, age: AlertEvaluator, held: AlertEvaluator
) -> None:
    statements = queries_of(lambda: (list(judge_outbox_age()), list(judge_held())))
    reads = reads_of(statements, {OUTBOX, HELD_ROWS})
    assert {read.table for read in reads} == {OUTBOX, HELD_ROWS}
    for read in reads:
        assert read.node != "Seq Scan", read
        # A thousand held rows of each topic, to skip those that wait for their key.
        assert read.rows <= 3 * 3000, read
    # The quickest of three: other processes are at work on this machine.
    assert min(timeit.repeat(lambda: (age.tick(), held.tick()), number=1, repeat=3)) < 0.3
    assert open_rules() == ["held-topic-1", "held-topic-2", "outbox-age"]
