"""Kafka is away at the start or for a while: requests do not notice, and everything is issued later."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
from django.conf import settings as project
from pytest_django import Settings

from coupons.models import Coupon, IssueRequest
from devstack import Part, Stack
from tests.processes.conftest import assert_in_the_middle_of, when_accepted, when_issued, when_shards_are_held
from tests.support.burst import Burst
from tests.support.ledger import assert_guarantees_hold
from tests.support.service import Service

pytestmark = pytest.mark.django_db(transaction=True)

Begin = Callable[..., Burst]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A Kafka that only these tests use; PostgreSQL and Redis are shared with all tests."""
    environ = {"DATABASE_URL": "postgres://given", "REDIS_URL": project.REDIS_URL}
    own = Stack("kafka-away", root=tmp_path_factory.mktemp("stack"), environ=environ, report=print)
    with own.used():
        yield own


@pytest.fixture
def broker(stack: Stack, settings: Settings) -> Iterator[Part]:
    """The broker, up before and after the test, and the one that the test's processes know."""
    broker = stack.part("kafka-1")
    broker.start()
    settings.KAFKA_BOOTSTRAP_SERVERS = f"127.0.0.1:{broker.port}"
    yield broker
    broker.start()


@pytest.fixture
def topics(broker: Part, topics: str) -> str:
    """The test's topics, on that broker."""
    return topics


def test_requests_are_accepted_while_kafka_is_down_and_issued_when_it_comes(
    broker: Part, service: Service, burst: Begin, coupons: Sequence[Coupon]
) -> None:
    broker.stop()
    service.start("relay")
    service.start("issuer", "--wait", "120")
    crowd = burst(requests=600, users=450)
    assert {answer.status for answer in crowd.finish()} == {202}
    assert not crowd.retries
    assert not IssueRequest.objects.exists()
    broker.start()
    assert_guarantees_hold(crowd, coupons)


@pytest.mark.parametrize("fault", ["frozen", "killed"])
def test_a_broker_that_fails_in_the_middle_of_a_burst_costs_no_request(
    broker: Part, service: Service, burst: Begin, coupons: Sequence[Coupon], fault: str
) -> None:
    service.start("relay")
    service.start("issuer", "--batch-size", "50")
    crowd = burst()
    when_issued(20)
    broker.freeze() if fault == "frozen" else broker.kill()
    when_accepted(crowd, len(crowd.asks))
    assert_in_the_middle_of(crowd)
    broker.thaw() if fault == "frozen" else broker.start()
    assert not crowd.retries
    assert_guarantees_hold(crowd, coupons)


def test_a_relay_killed_before_the_acknowledgement_sends_again(
    broker: Part, service: Service, burst: Begin, coupons: Sequence[Coupon]
) -> None:
    broker.kill()
    relay = service.start("relay")
    service.start("issuer", "--wait", "120")
    when_shards_are_held()
    crowd = burst(requests=600, users=450)
    crowd.finish()
    relay.kill()
    broker.start()
    relay.start()
    assert_guarantees_hold(crowd, coupons)
