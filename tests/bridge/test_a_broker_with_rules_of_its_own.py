"""A broker that forbids topics to users, and one whose defaults break promises: the topic and the remedy are named."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._acl import AclBinding, AclBindingFilter, AclOperation, AclPermissionType
from confluent_kafka.admin._resource import ResourcePatternType, ResourceType
from pytest_django import Settings

from common.processes.lifecycle import StopFlag
from devstack import Stack, wait_until
from devstack.kafka.broker import KafkaBroker
from kafka_bridge.client import ensure_topics
from kafka_bridge.models import Alert
from kafka_bridge.registry import prefixed
from kafka_bridge.relaying.relay import Relay
from tests.stub_app.events import publish_numbers
from tests.stub_app.routes import NUMBERS as TOPIC
from tests.support.kafka import read_topic
from tests.support.published import unpublished_rows
from tests.support.threads import in_another_session

pytestmark = pytest.mark.django_db(transaction=True)

# Appended to the stack's own properties: the last of a name counts.
_RULES = """
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
allow.everyone.if.no.acl.found=true
message.max.bytes=1000000
log.cleanup.policy=compact
log.retention.ms=1000
log.retention.bytes=1000000
"""
ANY_USER = "User:*"
_ANY: Any = None
_EVERY_RULE = AclBindingFilter(
    ResourceType.ANY, _ANY, ResourcePatternType.ANY, _ANY, _ANY, AclOperation.ANY, AclPermissionType.ANY
)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A Kafka that only these tests use, with access rules."""
    write = KafkaBroker._write_configuration

    def write_with_rules(broker: KafkaBroker, path: Path, log_folder: Path) -> None:
        write(broker, path, log_folder)
        path.write_text(path.read_text() + _RULES)

    elsewhere = {"DATABASE_URL": "elsewhere", "REDIS_URL": "elsewhere"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KafkaBroker, "_write_configuration", write_with_rules)
        own = Stack("own", root=tmp_path_factory.mktemp("stack"), environ=elsewhere, report=print)
        with own.used():
            yield own


@pytest.fixture(autouse=True)
def _own_broker(stack: Stack, settings: Settings) -> None:
    settings.KAFKA_BOOTSTRAP_SERVERS = f"127.0.0.1:{stack.part('kafka-1').port}"


class Rules:
    """Access rules of the broker."""

    def __init__(self, servers: str) -> None:
        self._admin = AdminClient({"bootstrap.servers": servers})

    def forbid(self, topic: str, operation: AclOperation) -> None:
        """Forbid all users that operation on a topic (named without prefix), and no other operation."""
        # With its first rule a topic is closed to what no rule allows.
        rules = [
            AclBinding(
                ResourceType.TOPIC, prefixed(topic), ResourcePatternType.LITERAL, ANY_USER, "*", what, permission
            )
            for what, permission in ((AclOperation.ALL, AclPermissionType.ALLOW), (operation, AclPermissionType.DENY))
        ]
        for future in self._admin.create_acls(rules).values():
            future.result(10)

        def are_in_force() -> bool:
            return set(rules) <= set(self._admin.describe_acls(_EVERY_RULE).result(10))

        # The controller answers before the broker knows.
        wait_until(are_in_force, 30, "the rules are not in force")

    def allow_everything(self) -> None:
        for future in self._admin.delete_acls([_EVERY_RULE]).values():
            future.result(10)


@pytest.fixture
def rules(topics: str, settings: Settings) -> Iterator[Rules]:
    of_broker = Rules(settings.KAFKA_BOOTSTRAP_SERVERS)
    yield of_broker
    of_broker.allow_everything()


@pytest.mark.parametrize("operation", [AclOperation.WRITE, AclOperation.DESCRIBE])
def test_a_topic_that_the_relay_may_not_write_to_is_named_until_it_may(operation: AclOperation, rules: Rules) -> None:
    rules.forbid(TOPIC, operation)
    publish_numbers(range(3))
    stop = StopFlag()
    relaying = in_another_session(lambda: Relay().run(stop))
    try:
        wait_until(Alert.objects.exists, 10, "no alert is opened")
        alert = Alert.objects.get()
        assert alert.rule == f"topic-{prefixed(TOPIC)}"
        assert alert.summary == (
            f"topic {prefixed(TOPIC)} refuses messages (TOPIC_AUTHORIZATION_FAILED):"
            " allow the relay's Kafka user DESCRIBE and WRITE on it"
        )
        rules.allow_everything()
        wait_until(lambda: not Alert.objects.filter(ended_at=None).exists(), 60, "the alert does not end")
        # The alert ends at the broker's acknowledgement, just before the relay marks the rows.
        wait_until(lambda: not unpublished_rows().exists(), 10, "the rows are not published")
        assert len(read_topic(TOPIC, 3)) == 3
    finally:
        stop.request()
        relaying.result(60)


@pytest.mark.parametrize("operation", [AclOperation.DESCRIBE_CONFIGS, AclOperation.DESCRIBE])
def test_a_topic_that_may_not_be_looked_at_is_not_called_right(
    operation: AclOperation, rules: Rules, settings: Settings
) -> None:
    rules.forbid(TOPIC, operation)
    _, complaints = ensure_topics(settings.KAFKA_ROUTES)
    (line,) = [line for line in complaints if line.startswith(f"{prefixed(TOPIC)}:") and "max.message" not in line]
    assert line.startswith(f"{prefixed(TOPIC)}: its settings cannot be read")
    assert line.endswith("allow this Kafka user DESCRIBE and DESCRIBE_CONFIGS on the topic")


@pytest.mark.usefixtures("topics")
def test_defaults_of_the_brokers_count_where_a_topic_has_no_setting_of_its_own(settings: Settings) -> None:
    _, complaints = ensure_topics(settings.KAFKA_ROUTES)
    event_topics = sorted({prefixed(route.topic) for route in settings.KAFKA_ROUTES.values()})
    assert [line.split(", ")[0] for line in complaints] == [
        f"{topic}: max.message.bytes is 1000000" for topic in event_topics
    ]
