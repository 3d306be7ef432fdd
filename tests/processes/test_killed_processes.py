"""kill -9 in the middle of a burst, and what was promised holds all the same."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence

import pytest
from django.db import connection, transaction

from coupons.models import Coupon
from devstack import wait_until
from devstack.procinfo import children, identify
from kafka_bridge.models import RelayLease
from tests.processes.conftest import (
    Web,
    assert_in_the_middle_of,
    when_accepted,
    when_issued,
    when_waiting_for_a_lock,
)
from tests.support.burst import Burst
from tests.support.ledger import assert_guarantees_hold
from tests.support.service import Service, kill_group

pytestmark = pytest.mark.django_db(transaction=True)

Begin = Callable[..., Burst]


def end_connection(backend: int) -> None:
    """End a backend whose client is dead, which it would only notice once it has done its work."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s)", [backend])


def test_a_killed_web_worker_is_replaced_and_no_request_is_lost(
    web: Web, service: Service, burst: Begin, coupons: Sequence[Coupon]
) -> None:
    service.start("relay")
    service.start("issuer")
    crowd = burst()
    when_accepted(crowd, 100)
    master = identify(web.process.pid)
    assert master is not None
    os.kill(children(master)[0].pid, signal.SIGKILL)
    assert_guarantees_hold(crowd, coupons)
    assert web.process.poll() is None


def test_no_worker_outlives_a_killed_web_server(web: Web) -> None:
    master = identify(web.process.pid)
    assert master is not None
    workers = children(master)
    assert workers
    os.kill(web.process.pid, signal.SIGKILL)
    wait_until(lambda: not any(identify(worker.pid) == worker for worker in workers), 20, "a worker lives on")
    web.process.start()


def test_a_killed_web_server_forgets_no_request_that_it_accepted(
    web: Web, service: Service, burst: Begin, coupons: Sequence[Coupon]
) -> None:
    service.start("relay")
    service.start("issuer")
    crowd = burst()
    for accepted in (1, 500):
        when_accepted(crowd, accepted)
        kill_group(web.process)
        assert_in_the_middle_of(crowd)
        web.process.start()
    assert_guarantees_hold(crowd, coupons)


def test_a_relay_killed_between_acknowledgement_and_position_publishes_again(
    service: Service, burst: Begin, coupons: Sequence[Coupon]
) -> None:
    service.start("issuer")
    relay = service.start("relay")
    wait_until(lambda: RelayLease.objects.exclude(owner=None).exists(), 30, "the relay claims no shard")
    crowd = burst()
    when_accepted(crowd, 200)
    with transaction.atomic():
        # Kafka acknowledges rows, and the relay cannot save its position past them.
        assert list(RelayLease.objects.select_for_update())
        for backend in when_waiting_for_a_lock("relay_outbox"):
            relay.kill()
            end_connection(backend)
    assert_in_the_middle_of(crowd)
    relay.start()
    assert_guarantees_hold(crowd, coupons)


def test_an_issuer_killed_in_its_transaction_and_after_it_issues_everything_once(
    service: Service, burst: Begin, coupons: Sequence[Coupon]
) -> None:
    service.start("relay")
    with transaction.atomic():
        assert list(Coupon.objects.select_for_update())
        issuer = service.start("issuer", "--batch-size", "50")
        crowd = burst()
        when_waiting_for_a_lock("consume_coupons")
        issuer.kill()
    issuer.start()
    when_issued(50)
    issuer.kill()
    assert_in_the_middle_of(crowd)
    issuer.start()
    assert_guarantees_hold(crowd, coupons)


def test_everything_killed_at_once_comes_back_with_every_promise_kept(
    web: Web, service: Service, burst: Begin, coupons: Sequence[Coupon]
) -> None:
    processes = [web.process, service.start("relay"), service.start("issuer", "--batch-size", "50")]
    crowd = burst()
    when_issued(50)
    for process in processes:
        kill_group(process)
    assert_in_the_middle_of(crowd)
    for process in processes:
        process.start()
    assert_guarantees_hold(crowd, coupons)
