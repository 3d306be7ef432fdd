"""A rolling deploy: processes of the old version and of this one share the database, Redis and Kafka under load."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID

import pytest
from pytest_django import DjangoDbBlocker

from coupons.messages import ISSUE_FAILED, ISSUE_REQUESTED, ISSUE_SUCCEEDED
from coupons.models import Coupon, IssueRequest, UserCoupon
from demo.processes import wait_until_ready
from devstack import wait_until
from devstack.ports import free_port
from kafka_bridge.client import group_lag
from kafka_bridge.models import Alert, DeadLetter, OutboxMessage
from kafka_bridge.outbox.published import anything_unpublished
from orders.models import Order, Product
from tests.cluster.history import (
    displaced_results,
    first_copies,
    lost_events,
    overtaken_requests,
    read_history,
    scattered_keys,
)
from tests.support.kafka import groups_of_the_project
from tests.support.service import Service, environment
from tests.upgrade.filled import own_database
from tests.upgrade.load import Visitors
from tests.upgrade.old_version import NotToBeHad, OldVersion

pytestmark = pytest.mark.usefixtures("redis_flushed")

LOAD_SECONDS = 60.0
# Rows that the reconciler publishes again may wait a minute for the relay's next look.
SECONDS = 180.0
ERROR = re.compile(r'"level": ?"(error|critical)"|^Traceback')
# Of every admission a coupon that is sold out soon, and another that never is.
STOCK = 20
PLENTY = 100_000
PREPARATION = f"""
from django.core.management import call_command
for admission in ("gate", "reserve", "queue"):
    for number, quantity in ((1, {STOCK}), (2, {PLENTY})):
        call_command("create_coupon", f"{{admission.upper()}}_{{number}}", quantity=quantity, admission=admission)
call_command("waffle_flag", "issue-worker", create=True, percent=50)
call_command("create_product", "Keyboard", price=89000)
"""
ROLES = ("relay", "issuer", "effects", "worker")


@pytest.fixture(scope="module")
def old_version(tmp_path_factory: pytest.TempPathFactory) -> OldVersion:
    try:
        return OldVersion(tmp_path_factory.mktemp("old"))
    except NotToBeHad as error:
        pytest.skip(str(error))


@pytest.fixture
def own(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> Iterator[None]:
    """An empty database."""
    with django_db_blocker.unblock(), own_database():
        yield


class Version:
    """The processes of one version."""

    def __init__(self, service: Service, port: int) -> None:
        self.service = service
        self.port = port

    def run(self, *arguments: str) -> None:
        """Run a command, which must end well."""
        result = self.service.command(*arguments)
        assert result.returncode == 0, result.stdout + result.stderr

    def start(self) -> None:
        """Start every process, and wait for the web."""
        self.service.start("web")
        for role in ROLES:
            self.service.start(role)
        self.service.start_command("reconcile", "--repair", "--every", "5", name="reconciler")
        self.when_ready()

    def restart(self, *names: str) -> None:
        """Stop processes by SIGTERM, which must end well, and start them again."""
        with ThreadPoolExecutor() as pool:
            list(pool.map(self._restart, names))
        if "web" in names:
            self.when_ready()

    def _restart(self, name: str) -> None:
        process = self.service.processes[name]
        assert process.stop(25.0) == 0, process.log_tail()
        process.start()

    def errors(self) -> list[str]:
        """The lines of the logs that an operator must look at."""
        logs = [process.log_path.read_text() for process in self.service.processes.values()]
        return [line for log in logs for line in log.splitlines() if ERROR.search(line)]

    def when_ready(self) -> None:
        wait_until_ready(self.service.processes["web"], self.port)


@pytest.fixture
def old(own: None, topics: str, old_version: OldVersion, tmp_path: Path) -> Iterator[Version]:
    port = free_port()
    service = old_version.service(tmp_path / "old-logs", process_environment(port))
    yield Version(service, port)
    service.end()


@pytest.fixture
def new(own: None, topics: str, tmp_path: Path) -> Iterator[Version]:
    port = free_port()
    service = Service(tmp_path / "new-logs", process_environment(port))
    yield Version(service, port)
    service.end()


def process_environment(port: int) -> Mapping[str, str]:
    return environment(
        PORT=str(port),
        HOST="127.0.0.1",
        WEB_CONCURRENCY="1",
        # A request that either version loses is found before the end.
        RECONCILE_PATIENCE_SECONDS="10",
        REQUEST_DEADLINE_SECONDS="10",
        ALERT_CANCELLED_PERCENT="0",
    )


def is_everything_done(visitors: Visitors) -> bool:
    decided = IssueRequest.objects.filter(request_id__in=list(visitors.spans)).count()
    return (
        decided == len(visitors.spans)
        and not anything_unpublished()
        and all(group_lag(group.group_id, group.topics) == 0 for group in groups_of_the_project())
    )


def written(*event_types: str) -> list[UUID]:
    """The ids of published events in the order in which they were written."""
    rows = OutboxMessage.objects.filter(event_type__in=event_types, headers=None).exclude(topic="issue-worker")
    return list(rows.order_by("id").values_list("event_id", flat=True))


def test_a_rolling_deploy_under_load_violates_nothing(old: Version, new: Version) -> None:
    old.run("migrate")
    old.run("shell", "-c", PREPARATION)
    old.start()
    # The old version's table has no such column.
    coupons = list(Coupon.objects.defer("rehearsal").order_by("coupon_type"))
    visitors = Visitors([old.port, new.port], coupons, Product.objects.get().pk)
    visitors.start()
    visitors.when_served(old.port, 50)
    # The migration comes before the new processes, while the old ones work.
    new.run("migrate")
    new.start()
    visitors.when_served(new.port, 50)
    old.restart("relay", "issuer")
    new.restart("web", "worker")
    visitors.when_served(new.port, 200)
    old.restart("web", "effects")
    new.restart("relay", "issuer")
    visitors.when_served(old.port, 200)
    new.restart("effects")
    old.restart("worker")
    visitors.when_at(LOAD_SECONDS)
    visitors.finish()
    wait_until(lambda: is_everything_done(visitors), SECONDS, "requests or events that are not handled", 0.2)

    assert visitors.complaints == []
    assert not [reason for reason in visitors.retries if reason.startswith("500")], visitors.retries
    assert set(visitors.refusals) <= {"409 sold_out"}, visitors.refusals
    assert len(visitors.paid) > len(visitors.cancelled) > 10
    with ThreadPoolExecutor() as pool:
        checks = [(version, command) for version in (old, new) for command in ("check_invariants", "reconcile")]
        list(pool.map(lambda check: check[0].run(check[1]), checks))
    for coupon in coupons:
        issued = UserCoupon.objects.filter(coupon=coupon).count()
        asked = IssueRequest.objects.filter(coupon=coupon).count()
        assert issued == (STOCK if coupon.total_quantity == STOCK else asked), coupon.coupon_type
    assert set(Order.objects.filter(status="CANCELLED").values_list("id", flat=True)) == set(visitors.cancelled)
    # Issuers of the old version do not know the time of publishing, those of this version keep it.
    by_kafka = IssueRequest.objects.filter(partition__gte=0)
    assert by_kafka.filter(published_at=None).exists()
    assert by_kafka.exclude(published_at=None).exists()
    assert not DeadLetter.objects.exists()
    # A group that is restarted may be behind for some seconds.
    alerts = Alert.objects.exclude(rule__startswith="lag-")
    assert not alerts.exists(), alerts.values_list("rule", "summary")
    errors = [line for line in (*old.errors(), *new.errors()) if '"event": "alert lag-' not in line]
    assert errors == []
    assert_events_are_complete_and_in_order(visitors)


def assert_events_are_complete_and_in_order(visitors: Visitors) -> None:
    requests, results = read_history("coupon-issue-request"), read_history("coupon-issue-response")
    assert lost_events(requests, written(ISSUE_REQUESTED)) == []
    assert lost_events(results, written(ISSUE_SUCCEEDED, ISSUE_FAILED)) == []
    assert lost_events(read_history("order-completed"), written("order.completed.v1")) == []
    assert lost_events(read_history("order-cancelled"), written("order.cancelled.v1")) == []
    assert scattered_keys(requests) == scattered_keys(results) == []
    for published in first_copies(requests).values():
        assert overtaken_requests(published, visitors.spans) == []
    in_table = written(ISSUE_SUCCEEDED, ISSUE_FAILED)
    for published in first_copies(results).values():
        assert displaced_results(published, in_table) == []
