"""Fixtures on the real parts: PostgreSQL, Redis and Kafka come from the environment (``make test`` starts them)."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from urllib.parse import parse_qsl, urlencode

import hypothesis
import pytest
from confluent_kafka.admin import AdminClient
from django.conf import settings as project
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created
from django.test import TransactionTestCase
from django_redis import get_redis_connection
from pytest_django import Settings
from redis import Redis

from coupons.coupon_cache import coupon_cache
from coupons.models import Coupon
from couponsite.auth.tokens import issue_access_token
from devstack import Part
from kafka_bridge.client import ensure_topics
from tests.support.factories import CouponFactory
from tests.support.own_redis import on_redis, redis_server
from tests.support.tables import empty_tables

# Drawing examples takes as long as a busy machine makes it; what a test is about is not its speed.
hypothesis.settings.register_profile("busy", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("busy")


def pytest_configure() -> None:
    """Give each lane of ``pytest -n`` a Redis database of its own: pytest-django does so for PostgreSQL only.

    The processes that tests start run the project without the stub app.
    """
    os.environ["DJANGO_SETTINGS_MODULE"] = "couponsite.settings"
    lane = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    address, _, query = project.REDIS_URL.partition("?")
    number = int(Redis.from_url(project.REDIS_URL).get_connection_kwargs().get("db") or 0) + lane
    own = f"{address}?{urlencode({**dict(parse_qsl(query)), 'db': number})}"
    os.environ["REDIS_URL"] = project.REDIS_URL = project.CACHES["default"]["LOCATION"] = own


@pytest.fixture(scope="session", autouse=True)
def _tables_emptied_cheaply() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransactionTestCase, "_fixture_teardown", lambda case: empty_tables())
        yield


@pytest.fixture(scope="session", autouse=True)
def _transactions_of_tests_may_wait() -> Iterator[None]:
    """A test may hold its transaction for as long as processes take to get somewhere."""

    def wait(connection: BaseDatabaseWrapper, **_signal: object) -> None:
        connection.connection.before_transaction = ""

    connection_created.connect(wait)
    yield
    connection_created.disconnect(wait)


@pytest.fixture(autouse=True)
def _no_cached_coupons() -> None:
    coupon_cache.clear()


@pytest.fixture
def make_coupon(db: None) -> Callable[..., Coupon]:
    """Creates an open coupon; keyword arguments are fields of Coupon."""
    return CouponFactory.create


@pytest.fixture
def gate_coupon(make_coupon: Callable[..., Coupon]) -> Coupon:
    """An open coupon of type SUMMER with the admission ``gate``."""
    return make_coupon(admission="gate", coupon_type="SUMMER")


@pytest.fixture
def token() -> Callable[..., dict[str, str]]:
    """The header of a user's bearer token: ``client.post(..., headers=token(7))``."""

    def header(user_id: int, scope: str = "") -> dict[str, str]:
        return {"Authorization": f"Bearer {issue_access_token(user_id, scope)}"}

    return header


@pytest.fixture
def redis_flushed() -> Iterator[None]:
    """An empty Redis, and an empty one afterwards."""
    get_redis_connection("default").flushdb()
    yield
    get_redis_connection("default").flushdb()


@pytest.fixture(scope="session")
def _lone_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Part]:
    with redis_server("lone-redis", tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis_alone(_lone_redis: Part, settings: Settings) -> Iterator[None]:
    """An empty Redis beside that of the other lanes: its scripts may be flushed."""
    with on_redis(_lone_redis, settings):
        get_redis_connection("default").flushdb()
        yield


@pytest.fixture
def topics(settings: Settings) -> Iterator[str]:
    """The topics of the route table under a prefix of the test's own, which is the value."""
    settings.KAFKA_TOPIC_PREFIX = f"t{secrets.token_hex(4)}-"
    created, _ = ensure_topics(settings.KAFKA_ROUTES)
    yield settings.KAFKA_TOPIC_PREFIX
    admin = AdminClient({"bootstrap.servers": settings.KAFKA_BOOTSTRAP_SERVERS})
    for future in admin.delete_topics(created).values():
        future.result()
