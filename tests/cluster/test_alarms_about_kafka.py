"""The housekeeper sees a broker that is down and a group that nobody runs, and their end."""

from __future__ import annotations

from pathlib import Path

import pytest

from coupons.consumer_groups import ISSUE
from devstack import wait_until
from kafka_bridge.models import Alert
from kafka_bridge.registry import prefixed
from tests.cluster.brokers import Cluster
from tests.cluster.conftest import cluster_environment
from tests.support.kafka import consume_everything, produce, set_topic_config
from tests.support.outbox import TOPIC
from tests.support.service import Service

pytestmark = pytest.mark.django_db(transaction=True)

REQUESTS = "coupon-issue-request"
RULES = ("broker-down", "brokers-missing", "lag-issue")
# Three ticks of the alarms, and what the brokers need to notice.
SECONDS = 90.0


def open_alerts() -> dict[str, str]:
    # The message that nobody can read has alerts of its own: it is a dead letter, which waits on its topic.
    return dict(Alert.objects.filter(ended_at=None, rule__in=RULES).values_list("rule", "summary"))


def test_a_killed_broker_and_a_stopped_consumer_are_alerts_until_they_are_back(
    cluster: Cluster, topics: str, tmp_path: Path
) -> None:
    # None of the three replicas can be spared: while a broker is away two are in sync.
    set_topic_config(TOPIC, {"min.insync.replicas": "3"})
    produce(REQUESTS, [b"{"], seconds_ago=60)
    service = Service(tmp_path, cluster_environment(cluster, ALERT_LAG_SECONDS="0", ALERT_END_SECONDS="1"))
    try:
        service.start("housekeeper")
        wait_until(lambda: "lag-issue" in open_alerts(), SECONDS, "no alert of the lag")
        assert open_alerts().keys() == {"lag-issue"}
        assert "s, 1 message, no running process consumes it" in open_alerts()["lag-issue"]

        consume_everything(ISSUE)
        cluster.brokers[3].kill()
        wait_until(
            lambda: open_alerts().keys() >= {"broker-down", "brokers-missing"}, SECONDS, "no alert of the broker"
        )
        assert open_alerts()["broker-down"].startswith(f"{prefixed(TOPIC)}[0] has 2 in-sync replicas and needs 3")
        assert open_alerts()["brokers-missing"].startswith("2 of 3 brokers are there: 1 at 127.0.0.1:")

        cluster.brokers[3].start()
        wait_until(lambda: open_alerts() == {}, SECONDS, "the alerts do not end")
        assert sorted(Alert.objects.filter(rule__in=RULES).values_list("rule", flat=True)) == [*RULES]
    finally:
        service.end()
