"""SIGTERM and SIGINT under load: exit 0 within a bound, nothing lost, and the next instance goes on."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence

import pytest

from coupons.models import Coupon
from devstack import ManagedProcess
from kafka_bridge.models import RelayLease
from tests.processes.conftest import (
    Web,
    assert_in_the_middle_of,
    when_accepted,
    when_issued,
    when_published,
    when_shards_are_held,
)
from tests.support.burst import Burst
from tests.support.ledger import assert_guarantees_hold
from tests.support.service import Service

pytestmark = pytest.mark.django_db(transaction=True)

# A stop waits at most for the requests or the batch under way, all of them far shorter.
STOP_SECONDS = 10.0

Begin = Callable[..., Burst]


def replace(process: ManagedProcess, number: signal.Signals) -> None:
    """Stop a process by a signal, which must end it in order, and start the next instance."""
    process.send_signal(number)
    assert process.wait(STOP_SECONDS) == 0
    process.start()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_every_role_can_be_replaced_under_load(
    web: Web, service: Service, burst: Begin, coupons: Sequence[Coupon], number: signal.Signals
) -> None:
    relay, issuer = service.start("relay"), service.start("issuer", "--batch-size", "50")
    crowd = burst()
    when_accepted(crowd, 200)
    replace(web.process, number)
    when_published(300)
    replace(relay, number)
    when_issued(100)
    replace(issuer, number)
    assert_in_the_middle_of(crowd)
    assert_guarantees_hold(crowd, coupons)


def test_a_stopped_relay_gives_its_shards_back_at_once(service: Service) -> None:
    relay = service.start("relay")
    when_shards_are_held()
    assert relay.stop(STOP_SECONDS) == 0
    assert not RelayLease.objects.exclude(owner=None).exists()
