"""Real processes on the test database, with topics of the test's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from django.db import connection
from django.db.models import Sum

from coupons.models import Coupon, IssueRequest
from demo.processes import WebProcess, is_ready, wait_until_ready
from devstack import ManagedProcess, wait_until
from devstack.ports import free_port
from kafka_bridge.models import RelayLease
from tests.support.burst import Burst
from tests.support.factories import CouponFactory
from tests.support.provider import Provider
from tests.support.published import published_rows
from tests.support.service import Service, environment

STOCK = 200
MOMENT_SECONDS = 60.0

_WAITING_FOR_A_LOCK = """
    SELECT pid FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event_type = 'Lock' AND application_name = %s
"""


@dataclass(frozen=True)
class Web:
    process: ManagedProcess
    port: int


@contextmanager
def running_web(folder: Path) -> Iterator[Web]:
    """A web process with the settings of this moment, which writes its log into ``folder``."""
    port = free_port()
    process = WebProcess(environment(PORT=str(port), HOST="127.0.0.1"), folder / "web.log")
    with process:
        yield Web(process, port)


@pytest.fixture
def own_web(transactional_db: None, tmp_path: Path) -> Iterator[Web]:
    """A web process of the test's own, ready; what it needs of the settings is set by the fixtures before it."""
    with running_web(tmp_path) as web:
        wait_until_ready(web.process, web.port)
        yield web


@pytest.fixture(scope="package")
def shared_web(django_db_setup: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    """One web process for all tests: it needs nothing of Kafka, and the coupons of every test are new to it."""
    with running_web(tmp_path_factory.mktemp("web")) as web:
        yield web


@pytest.fixture
def web(transactional_db: None, shared_web: Web) -> Iterator[Web]:
    """The web process, ready; a test may kill it."""
    if shared_web.process.poll() is not None:
        shared_web.process.start()
    if not is_ready(shared_web.port):
        wait_until_ready(shared_web.process, shared_web.port)
    yield shared_web
    print(f"--- web\n{shared_web.process.log_tail(40)}")


@pytest.fixture
def service(transactional_db: None, topics: str, tmp_path: Path) -> Iterator[Service]:
    """Starts further processes, and ends them before the tables are emptied."""
    service = Service(tmp_path, environment())
    yield service
    service.end()


@pytest.fixture
def alimtalk() -> Iterator[Provider]:
    """AlimTalk as a server on loopback, for processes with its address as ``ALIMTALK_URL``."""
    alimtalk = Provider()
    alimtalk.up()
    yield alimtalk
    alimtalk.close()


@pytest.fixture
def coupons(transactional_db: None) -> list[Coupon]:
    """Two open coupons that fewer users can have than want them."""
    return CouponFactory.create_batch(2, total_quantity=STOCK)


@pytest.fixture
def burst(web: Web, coupons: Sequence[Coupon]) -> Iterator[Callable[..., Burst]]:
    """``burst()`` begins a burst: 1,200 requests of 600 users unless told otherwise."""
    begun: list[Burst] = []

    def begin(requests: int = 1200, users: int = 600) -> Burst:
        begun.append(Burst(web.port, coupons, requests=requests, users=users))
        begun[-1].start()
        return begun[-1]

    yield begin
    for one in begun:
        one.stop()


def when_accepted(burst: Burst, count: int) -> None:
    """Wait until so many requests were accepted."""
    wait_until(
        lambda: burst.accepted >= count, MOMENT_SECONDS, f"less than {count} accepted; {dict(burst.retries)}", 0.002
    )


def when_published(count: int) -> None:
    """Wait until so many messages are marked as published."""
    published = published_rows()
    wait_until(lambda: published.count() >= count, MOMENT_SECONDS, f"less than {count} published", 0.01)


def when_shards_are_held() -> None:
    """Wait until a relay is at work."""
    wait_until(RelayLease.objects.exclude(owner=None).exists, MOMENT_SECONDS, "no relay took a shard")


def when_waiting_for_a_lock(application: str) -> list[int]:
    """Wait until a connection of ``manage.py <application>`` waits for a lock; returns its backends' pids."""
    waiting: list[int] = []

    def look() -> bool:
        with connection.cursor() as cursor:
            # Within a transaction PostgreSQL shows the activity of the first look again and again.
            cursor.execute("SELECT pg_stat_clear_snapshot()")
            cursor.execute(_WAITING_FOR_A_LOCK, [f"coupons {application}"])
            waiting[:] = [pid for (pid,) in cursor.fetchall()]
        return bool(waiting)

    wait_until(look, MOMENT_SECONDS, f"{application} waits for no lock", 0.01)
    return waiting


def assert_in_the_middle_of(burst: Burst) -> None:
    """That the fault before this line hit work under way; a test that came too late would prove nothing."""
    assert IssueRequest.objects.count() < len(burst.asks)


def when_issued(count: int) -> None:
    """Wait until so many coupons were issued."""
    wait_until(
        lambda: (Coupon.objects.aggregate(total=Sum("issued"))["total"] or 0) >= count,
        MOMENT_SECONDS,
        f"less than {count} issued",
        0.01,
    )
