"""Alarms about messages that could not be handled: the share of errors, and the open dead letters."""

from __future__ import annotations

import pytest
from django.db import connection
from pytest_django import Settings

from common.postgres.clock import database_time
from coupons.consumer_groups import ISSUE
from kafka_bridge.models import Alert, AlertNotification, DeadLetter
from kafka_bridge.operating.evaluation import AlertEvaluator
from kafka_bridge.operating.message_alarms import DEAD_LETTERS, ERRORS, judge_dead_letters, judge_errors
from tests.operating.alarms import add_sample, evaluator_of, move_into_the_past, open_now, open_rules
from tests.support.kafka import consume_everything, produce
from tests.support.plans import queries_of, reads_of

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _alerts_end_at_once(settings: Settings) -> None:
    settings.ALERT_END_SECONDS = 0


# The share of errors


@pytest.fixture
def errors() -> AlertEvaluator:
    return evaluator_of(ERRORS, judge_errors)


def test_a_group_of_which_too_many_messages_fail_opens_one_alert_which_ends(errors: AlertEvaluator) -> None:
    add_sample("issue", handled=900, dead_letters=1)
    add_sample("issue", handled=100, dead_letters=2, passed_over=1, errors=2)
    add_sample("results", handled=1000)
    errors.tick()
    errors.tick()
    assert open_now() == [
        (
            "errors-issue",
            "issue: 6 of 1000 messages of the last 5 minutes failed (3 dead letters, 1 passed over, 2 errors),"
            " more than 0.5 %",
        )
    ]
    assert Alert.objects.get().severity == "critical"
    move_into_the_past("kafka_bridge_sample", ["taken_at"], 301)
    errors.tick()
    assert open_rules() == []
    assert list(AlertNotification.objects.order_by("id").values_list("phase", flat=True)) == ["start", "end"]


@pytest.mark.parametrize(
    "counts",
    [
        {"handled": 1000, "dead_letters": 5},
        {"handled": 199, "dead_letters": 199},
        {"handled": 200, "dead_letters": 1},
        {"handled": 1000, "busy_seconds": 500},
        {"dead_letters": 50},
    ],
    ids=["exactly the percentage", "few messages", "one error", "slow", "nothing handled"],
)
def test_fewer_errors_open_no_alert(counts: dict[str, float], errors: AlertEvaluator) -> None:
    add_sample("issue", **counts)
    errors.tick()
    assert open_rules() == []


def test_each_group_has_an_alert_and_other_sources_have_none(errors: AlertEvaluator) -> None:
    for source in ("issue", "results", "accept", "relay", "nobody"):
        add_sample(source, handled=200, errors=2)
    errors.tick()
    assert open_rules() == ["errors-issue", "errors-results"]


def test_the_percentage_of_errors_is_a_setting(errors: AlertEvaluator, settings: Settings) -> None:
    add_sample("issue", handled=200, errors=2)
    settings.ALERT_ERROR_PERCENT = 1.0
    errors.tick()
    assert open_rules() == []
    settings.ALERT_ERROR_PERCENT = 0.99
    errors.tick()
    assert open_rules() == ["errors-issue"]
    settings.ALERT_ERROR_PERCENT = 0
    errors.tick()
    assert open_rules() == []


# Dead letters


@pytest.fixture
def letters() -> AlertEvaluator:
    return evaluator_of(DEAD_LETTERS, judge_dead_letters)


@pytest.mark.usefixtures("topics")
def test_poison_that_a_consumer_dead_letters_opens_one_alert_which_ends(letters: AlertEvaluator) -> None:
    produce("coupon-issue-request", [b"{"] * 10)
    consume_everything(ISSUE)
    letters.tick()
    assert (DeadLetter.objects.count(), open_rules()) == (10, [])
    produce("coupon-issue-request", [b"{"])
    consume_everything(ISSUE)
    letters.tick()
    letters.tick()
    assert open_now() == [("dead-letters", "11 dead letters are open, more than 10; of the newest 11: 11 of issue")]
    DeadLetter.objects.filter(pk=DeadLetter.objects.order_by("id")[0].pk).update(closed_at=database_time())
    letters.tick()
    assert open_rules() == []
    assert list(AlertNotification.objects.order_by("id").values_list("phase", flat=True)) == ["start", "end"]


_FILL = """
    INSERT INTO kafka_bridge_deadletter (consumer_group, topic, partition, "offset", message_timestamp, event_type,
                                         event_id, payload, headers, error_class, error_message, closed_at)
    SELECT CASE n %% 10 WHEN 0 THEN 'results' ELSE 'issue' END, 't', 0, n, 0, 'e',
           lpad(to_hex(n), 32, '0')::uuid, '{', '[]', 'E', '', CASE WHEN n > %(open)s THEN statement_timestamp() END
    FROM generate_series(1, %(rows)s) n
"""


def fill(*, open_letters: int, rows: int = 100_000) -> None:
    with connection.cursor() as cursor:
        cursor.execute(_FILL, {"open": open_letters, "rows": rows})
        cursor.execute("ANALYZE kafka_bridge_deadletter")


def test_all_dead_letters_but_few_are_closed_and_the_open_ones_are_counted_by_index(letters: AlertEvaluator) -> None:
    fill(open_letters=20)
    letters.tick()
    assert open_now() == [
        ("dead-letters", "20 dead letters are open, more than 10; of the newest 20: 18 of issue, 2 of results")
    ]
    reads = reads_of(queries_of(lambda: list(judge_dead_letters())), {"kafka_bridge_deadletter"})
    assert [(read.node, read.rows) for read in reads] == [("Index Scan", 20)]


def test_of_very_many_open_dead_letters_as_many_are_read_as_are_needed(letters: AlertEvaluator) -> None:
    fill(open_letters=10_500, rows=10_500)
    letters.tick()
    ((rule, summary),) = open_now()
    assert (rule, summary.partition(";")[0]) == ("dead-letters", "more than 10000 dead letters are open, more than 10")
    reads = reads_of(queries_of(lambda: list(judge_dead_letters())), {"kafka_bridge_deadletter"})
    assert sum(read.rows for read in reads) <= 10_001


def test_the_number_of_dead_letters_is_a_setting(letters: AlertEvaluator, settings: Settings) -> None:
    fill(open_letters=5, rows=5)
    settings.ALERT_DEAD_LETTERS = 4
    letters.tick()
    assert open_rules() == ["dead-letters"]
    settings.ALERT_DEAD_LETTERS = 0
    letters.tick()
    assert open_rules() == []


def test_the_samples_of_five_minutes_are_read_by_index() -> None:
    with connection.cursor() as cursor:
        # One every 150 ms for 50 minutes.
        cursor.execute(
            """
            INSERT INTO kafka_bridge_sample (process_id, source, taken_at, seconds, counts)
            SELECT gen_random_uuid(), 'issue', statement_timestamp() - n * interval '150 ms', 5, '{"handled": 100}'
            FROM generate_series(1, 20000) n;
            ANALYZE kafka_bridge_sample
            """
        )
    reads = reads_of(queries_of(lambda: list(judge_errors())), {"kafka_bridge_sample"})
    assert [read.node for read in reads] == ["Index Scan"]
    assert 0 < reads[0].rows <= 2000
