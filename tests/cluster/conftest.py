"""Three brokers for these tests alone; PostgreSQL and Redis are shared with all tests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_django import Settings

from coupons.consumer_groups import ISSUE
from coupons.models import Coupon
from demo.processes import WebProcess, wait_until_ready
from devstack.ports import free_port
from tests.cluster.brokers import Cluster, three_brokers
from tests.cluster.load import Load
from tests.cluster.sale import Sale
from tests.processes.conftest import when_shards_are_held
from tests.support.factories import CouponFactory
from tests.support.service import Service, environment

# Far shorter than the defaults, so that a fault of seconds outlasts every timeout: requests are given up and repeated.
TIMEOUT_MS = 3000
_CLIENT = {"socket.timeout.ms": TIMEOUT_MS}
_PRODUCER = {**_CLIENT, "request.timeout.ms": TIMEOUT_MS}
# The shortest that brokers allow.
_CONSUMER = {**_CLIENT, "session.timeout.ms": 6000}

# More than a quarter of them is asked for before a fault, and all of them by the end.
HOT_STOCK = 600
STOCK = 100
AT_LEAST = 2000
ISSUERS = 2


@pytest.fixture(scope="package")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three brokers, up."""
    with three_brokers(tmp_path_factory.mktemp("stack")) as cluster:
        yield cluster


@pytest.fixture
def topics(cluster: Cluster, on_cluster: None, topics: str) -> Iterator[str]:
    """The test's topics on the three brokers, all of which are up again when the topics are deleted."""
    cluster.when_whole()
    yield topics
    cluster.heal()


@pytest.fixture
def on_cluster(cluster: Cluster, settings: Settings) -> None:
    """The settings of this process: what the test itself asks is asked of the three brokers."""
    settings.KAFKA_BOOTSTRAP_SERVERS = cluster.servers
    settings.KAFKA_REPLICATION_FACTOR = len(cluster.brokers)


def cluster_environment(cluster: Cluster, **changes: str) -> dict[str, str]:
    """What a process on the three brokers gets."""
    return environment(
        KAFKA_BOOTSTRAP_SERVERS=cluster.servers,
        KAFKA_REPLICATION_FACTOR=str(len(cluster.brokers)),
        KAFKA_PRODUCER_CONFIG=json.dumps(_PRODUCER),
        KAFKA_CONSUMER_CONFIG=json.dumps(_CONSUMER),
        # Thousands of lines that would hide what relay and issuers say about the brokers.
        LOG_REQUESTS="False",
        **changes,
    )


@pytest.fixture(scope="package")
def web_port(cluster: Cluster, django_db_setup: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """One web process for all tests: the coupons of every test are new to it."""
    port = free_port()
    log_path = tmp_path_factory.mktemp("web") / "web.log"
    env = cluster_environment(cluster, PORT=str(port), HOST="127.0.0.1")
    with WebProcess(env, log_path) as web:
        wait_until_ready(web, port)
        yield port


@pytest.fixture
def coupons(transactional_db: None) -> list[Coupon]:
    """The hot coupon and others that lie on further partitions."""
    return [CouponFactory.create(total_quantity=HOT_STOCK), *CouponFactory.create_batch(5, total_quantity=STOCK)]


@pytest.fixture
def service(transactional_db: None, cluster: Cluster, topics: str, tmp_path: Path) -> Iterator[Service]:
    """Starts processes on the three brokers, and ends them before the tables are emptied."""
    service = Service(tmp_path, cluster_environment(cluster))
    yield service
    service.end()


@pytest.fixture
def sale(service: Service, cluster: Cluster, web_port: int, coupons: list[Coupon]) -> Iterator[Sale]:
    """A sale that has begun, on a relay and two issuers."""
    load = Load(web_port, coupons, at_least=AT_LEAST)
    try:
        service.start("relay")
        for number in range(ISSUERS):
            service.start("issuer", "--batch-size", "50", name=f"issuer-{number}")
        when_shards_are_held()
        cluster.when_shared(ISSUE.group_id, ISSUERS)
        load.start()
        yield Sale(load, coupons)
    finally:
        load.stop()
