"""kill -9 in the middle of a burst, and what was promised holds all the same."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence

import pytest

from coupons.models import Coupon
from devstack.procinfo import children, identify
from tests.processes.conftest import Web, assert_in_the_middle_of, when_accepted, when_issued, when_published
from tests.support.burst import Burst
from tests.support.ledger import assert_guarantees_hold
from tests.support.service import Service, kill_group

pytestmark = pytest.mark.django_db(transaction=True)

Begin = Callable[..., Burst]


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


def test_a_killed_relay_leaves_nothing_unpublished(service: Service, burst: Begin, coupons: Sequence[Coupon]) -> None:
    relay = service.start("relay")
    service.start("issuer")
    crowd = burst()
    when_published(200)
    relay.kill()
    assert_in_the_middle_of(crowd)
    relay.start()
    assert_guarantees_hold(crowd, coupons)


def test_a_killed_issuer_issues_nothing_twice(service: Service, burst: Begin, coupons: Sequence[Coupon]) -> None:
    service.start("relay")
    issuer = service.start("issuer", "--batch-size", "50")
    crowd = burst()
    for issued in (1, 150):
        when_issued(issued)
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
