"""A topic that takes no messages is named in the log and in an alert, which ends once the topic takes them again."""

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import pytest
from django.db import transaction
from pytest_django import Settings

from common.processes.lifecycle import StopFlag
from devstack import wait_until
from kafka_bridge.client import ensure_topics
from kafka_bridge.cloudevents import encode_headers
from kafka_bridge.consuming.retrying_partitions import WAITING
from kafka_bridge.models import Alert, OutboxMessage
from kafka_bridge.operating.alerts import open_alert
from kafka_bridge.operating.outbox_alarms import TOPIC as TOPIC_ALERT
from kafka_bridge.outbox.writing import OutboxRow, insert_rows, new_event_id
from kafka_bridge.registry import prefixed
from kafka_bridge.relaying.relay import Relay
from tests.stub_app.events import publish_numbers
from tests.stub_app.routes import NUMBER_DRAWN as EVENT
from tests.stub_app.routes import NUMBERS as TOPIC
from tests.support.kafka import lose_topics, read_topic
from tests.support.published import unpublished_rows
from tests.support.threads import in_another_session

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("topics")]

DLT = f"{TOPIC}.DLT"
# Far below the half minute in which the client waits for a topic that is unknown to appear.
A_FEW_SECONDS = 10


@pytest.fixture(autouse=True)
def _topics_created_again(topics: str, settings: Settings) -> Iterator[None]:
    """What a test deletes is there again when all topics are deleted."""
    yield
    ensure_topics(settings.KAFKA_ROUTES)


@pytest.fixture
def impatient_client(settings: Settings) -> None:
    """A client that waits only a second for a topic that is unknown."""
    settings.KAFKA_PRODUCER_CONFIG = {"topic.metadata.propagation.max.ms": 1000}


@pytest.fixture
def relaying() -> Iterator[Callable[[], None]]:
    """``relaying()`` starts a relay in the background."""
    stop, running = StopFlag(), list[Future[None]]()
    yield lambda: running.append(in_another_session(lambda: Relay().run(stop)))
    stop.request()
    for relay in running:
        relay.result(60)


def insert_copy(topic: str = DLT) -> None:
    """A row as dead letters have it: a message with headers of its own for a dead-letter topic."""
    row = OutboxRow(new_event_id(), EVENT, topic, b"1", b"{}", headers=encode_headers((("ce_type", EVENT.encode()),)))
    with transaction.atomic():
        insert_rows([row])


def when_all_is_published() -> None:
    wait_until(lambda: not unpublished_rows().exists(), 90, "the relay does not go on")


def when_an_alert_is_open() -> Alert:
    wait_until(Alert.objects.filter(ended_at=None).exists, A_FEW_SECONDS, "no alert is opened")
    return Alert.objects.get()


def when_no_alert_is_open() -> None:
    wait_until(lambda: not Alert.objects.filter(ended_at=None).exists(), 30, "the alert does not end")


@pytest.mark.parametrize("is_known", [True, False], ids=["deleted under a running relay", "missing at the start"])
def test_a_deleted_topic_is_named_within_seconds_and_everything_is_published_once_it_is_back(
    is_known: bool, relaying: Callable[[], None], settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    if is_known:
        insert_copy()
        relaying()
        when_all_is_published()
    lose_topics(DLT)
    insert_copy()
    publish_numbers(range(5))
    if not is_known:
        relaying()

    alert = when_an_alert_is_open()
    assert (alert.rule, alert.severity) == (f"topic-{prefixed(DLT)}", "critical")
    assert alert.summary == f"topic {prefixed(DLT)} does not exist: run create_topics"
    assert alert.runbook == "docs/runbooks/topic.md"
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert line == alert.summary

    ensure_topics(settings.KAFKA_ROUTES)
    when_all_is_published()
    when_no_alert_is_open()
    assert Alert.objects.count() == 1
    assert len(read_topic(DLT, 1)) == 1


@pytest.mark.usefixtures("impatient_client")
def test_of_a_topic_that_the_routes_no_longer_name_the_remedy_is_another(relaying: Callable[[], None]) -> None:
    insert_copy("topic-of-former-routes")
    relaying()
    assert "KAFKA_ROUTES names it no more" in when_an_alert_is_open().summary
    OutboxMessage.objects.all().delete()
    when_no_alert_is_open()


def test_a_name_longer_than_a_rule_has_a_rule_of_its_own(relaying: Callable[[], None]) -> None:
    for last in "ab":
        insert_copy("n" * 200 + last)
    relaying()
    wait_until(lambda: Alert.objects.count() == 2, A_FEW_SECONDS, "not every topic is named")


@pytest.mark.usefixtures("impatient_client")
def test_one_topic_recovers_while_another_is_still_missing(relaying: Callable[[], None], settings: Settings) -> None:
    lose_topics(DLT)
    insert_copy("topic-of-former-routes")
    insert_copy()
    relaying()
    wait_until(lambda: Alert.objects.count() == 2, A_FEW_SECONDS, "not every topic is named")
    ensure_topics(settings.KAFKA_ROUTES)
    wait_until(
        lambda: Alert.objects.filter(ended_at=None).count() == 1, 60, "the alert of a topic that is back does not end"
    )
    assert "topic-of-former-routes" in Alert.objects.get(ended_at=None).rule


@pytest.mark.parametrize("is_needed", [True, False], ids=["rows for the topic come", "no row comes"])
def test_the_alert_that_a_dead_relay_left_is_ended_by_the_next(is_needed: bool, relaying: Callable[[], None]) -> None:
    open_alert(TOPIC_ALERT, "it was missing", subject=prefixed(TOPIC))
    open_alert(WAITING, "another's", subject="ranking")
    if is_needed:
        publish_numbers(range(1))
    relaying()
    wait_until(lambda: Alert.objects.filter(ended_at=None).count() == 1, 30, "the alert does not end")
    assert Alert.objects.get(ended_at=None).rule == "waiting-ranking"
