"""A topic that demands more in-sync replicas than there are is named; the others go on."""

from __future__ import annotations

import pytest
from pytest_django import Settings

from common.processes.lifecycle import StopFlag
from devstack import wait_until
from kafka_bridge.client import ensure_topics
from kafka_bridge.models import Alert
from kafka_bridge.registry import prefixed
from kafka_bridge.relaying.relay import Relay
from tests.cluster.brokers import Cluster
from tests.support.kafka import read_topic, set_topic_config
from tests.support.outbox import TOPIC, publish_numbers
from tests.support.published import unpublished_rows
from tests.support.threads import in_another_session

pytestmark = pytest.mark.django_db(transaction=True)


def test_the_missing_replicas_are_named_until_the_broker_is_back(
    cluster: Cluster, topics: str, settings: Settings
) -> None:
    # None of the three replicas can be spared: while a broker is away two are in sync.
    set_topic_config(TOPIC, {"min.insync.replicas": "3"})

    def is_named() -> bool:
        return any(
            complaint.startswith(f"{prefixed(TOPIC)}: min.insync.replicas is 3, must be 2 to 2")
            for complaint in ensure_topics(settings.KAFKA_ROUTES)[1]
        )

    # The broker that is asked may learn of the setting after the one that took it.
    wait_until(is_named, 20, "the setting is not named")

    cluster.brokers[3].kill()
    cluster.when_fenced(3)
    stop = StopFlag()
    relaying = in_another_session(lambda: Relay().run(stop))
    try:
        publish_numbers(range(3))
        wait_until(Alert.objects.exists, 20, "no alert is opened")
        assert Alert.objects.get().summary == (
            f"topic {prefixed(TOPIC)} has 2 in-sync replicas and min.insync.replicas is 3:"
            " bring its brokers back, or correct min.insync.replicas"
        )
        cluster.brokers[3].start()
        wait_until(lambda: not unpublished_rows().exists(), 90, "the relay does not go on")
        wait_until(lambda: not Alert.objects.filter(ended_at=None).exists(), 30, "the alert does not end")
        assert len(read_topic(TOPIC, 3)) >= 3
    finally:
        stop.request()
        relaying.result(60)
