"""create_topics names what is wrong about topics that exist, with the remedy, and changes nothing of it."""

from io import StringIO

import pytest
from django.conf import settings
from django.core.management import CommandError, call_command

from kafka_bridge.client import topic_configs
from kafka_bridge.registry import prefixed
from kafka_bridge.topic_checks import FoundTopic, WantedTopic, topic_complaints
from tests.stub_app.routes import NUMBERS as EVENTS
from tests.support.kafka import set_topic_config

DLT = f"{EVENTS}.DLT"


def config_of(topic: str) -> dict[str, str]:
    (config,) = topic_configs([prefixed(topic)]).values()
    assert isinstance(config, dict)
    return config


def create_topics() -> tuple[list[str], str]:
    """The complaints of the command, without the prefix of the test, and its last line."""
    errors = StringIO()
    try:
        call_command("create_topics", stdout=StringIO(), stderr=errors)
    except CommandError as error:
        return errors.getvalue().replace(prefixed(""), "").splitlines(), str(error)
    return [], ""


@pytest.mark.parametrize(
    ("topic", "name", "value", "remedy"),
    [
        (EVENTS, "retention.ms", "1000", "retention.ms=-1"),
        (DLT, "retention.ms", "1000", "retention.ms=-1"),
        (EVENTS, "retention.bytes", "1000000", "retention.bytes=-1"),
        (DLT, "retention.bytes", "1000000", "retention.bytes=-1"),
        (EVENTS, "cleanup.policy", "compact", "cleanup.policy=delete"),
        (DLT, "cleanup.policy", "compact,delete", "cleanup.policy=delete"),
        (EVENTS, "min.insync.replicas", "2", "min.insync.replicas=1"),
        (DLT, "min.insync.replicas", "2", "min.insync.replicas=1"),
        (EVENTS, "max.message.bytes", "1000000", "max.message.bytes=1048588"),
        (DLT, "max.message.bytes", "1048588", "max.message.bytes=2097152"),
        (EVENTS, "message.timestamp.before.max.ms", "1000", "message.timestamp.before.max.ms=300000"),
        (DLT, "message.timestamp.after.max.ms", "1000", "message.timestamp.after.max.ms=300000"),
    ],
)
@pytest.mark.django_db
@pytest.mark.usefixtures("topics")
def test_a_setting_that_breaks_a_promise_is_named_with_its_remedy_and_left_alone(
    topic: str, name: str, value: str, remedy: str
) -> None:
    set_topic_config(topic, {name: value})
    (line,), end = create_topics()
    assert line.startswith(f"{topic}: {name} is {value}, must be ")
    assert line.endswith(
        f"; kafka-configs.sh --bootstrap-server {settings.KAFKA_BOOTSTRAP_SERVERS} --alter --entity-type topics"
        f" --entity-name {topic} --add-config {remedy}"
    )
    assert "nothing was changed" in end
    assert config_of(topic)[name] == value


@pytest.mark.django_db
@pytest.mark.usefixtures("topics")
def test_what_is_larger_or_does_no_harm_is_no_complaint() -> None:
    harmless = {
        "max.message.bytes": "9000000",
        "compression.type": "zstd",
        "message.timestamp.type": "LogAppendTime",
        "message.timestamp.before.max.ms": "1000",
        "segment.ms": "60000",
        "unclean.leader.election.enable": "true",
    }
    set_topic_config(EVENTS, harmless)
    assert create_topics() == ([], "")


def complaints_about(config: dict[str, str], *, replicas: int = 3, retention_ms: int = -1) -> list[str]:
    wanted = WantedTopic("events", partitions=5, replicas=3, retention_ms=retention_ms, least_message_bytes=1_048_588)
    return list(topic_complaints(wanted, FoundTopic(5, replicas, config)))


@pytest.mark.parametrize(
    ("in_sync", "replicas", "words"),
    [
        ("1", 3, "must be 2 or more: an acknowledged message may be on one broker alone"),
        ("3", 3, "must be 2 to 2: nothing can be written while one broker is away"),
        ("4", 3, "must be 2 to 3: the topic has 3 replicas"),
        ("2", 3, None),
        ("3", 4, None),
    ],
)
def test_min_insync_replicas_lets_one_broker_be_away_and_keeps_each_message_on_two(
    in_sync: str, replicas: int, words: str | None
) -> None:
    complaints = complaints_about({"min.insync.replicas": in_sync}, replicas=replicas)
    assert [words in complaint for complaint in complaints if words] == ([True] if words else [])
    assert bool(complaints) is bool(words)


def test_an_election_that_loses_acknowledged_messages_is_named() -> None:
    (complaint,) = complaints_about({"min.insync.replicas": "2", "unclean.leader.election.enable": "true"})
    assert "--add-config unclean.leader.election.enable=false" in complaint


@pytest.mark.parametrize(("retention", "is_short"), [("3599999", True), ("3600000", False), ("-1", False)])
def test_retention_is_measured_by_what_the_route_says(retention: str, is_short: bool) -> None:
    complaints = complaints_about({"retention.ms": retention}, retention_ms=3_600_000)
    assert bool(complaints) is is_short


def test_a_topic_that_deletes_nothing_at_all_is_kept_for_ever() -> None:
    assert complaints_about({"cleanup.policy": "", "retention.ms": "1000", "retention.bytes": "1000"}) == []


def test_missing_partitions_and_replicas_are_named() -> None:
    wanted = WantedTopic("events", partitions=5, replicas=3, retention_ms=-1, least_message_bytes=1)
    few, thin = topic_complaints(wanted, FoundTopic(3, 1, {}))
    assert "has 3 partitions, its route says 5" in few
    assert "has partitions with 1 replicas, its route says 3" in thin
