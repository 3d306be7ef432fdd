"""Redis fails over in the middle of a burst, behind an address that keeps the connections of every process open."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from pytest_django import Settings

from coupons import invariants
from coupons.models import Coupon, RolloutChange
from devstack import wait_until
from tests.processes.conftest import STOCK, Web, when_accepted
from tests.support.burst import Burst
from tests.support.ledger import when_decided
from tests.support.redis_pair import Pair, replicated, two_servers
from tests.support.service import Service

pytestmark = pytest.mark.django_db(transaction=True)

RECOVERED_SECONDS = 10.0


@pytest.fixture
def pair(tmp_path: Path, settings: Settings) -> Iterator[Pair]:
    with two_servers(tmp_path) as parts, replicated(parts) as pair:
        settings.REDIS_URL = f"redis://127.0.0.1:{pair.address.port}/0"
        default = settings.CACHES["default"]
        settings.CACHES = {**settings.CACHES, "default": {**default, "LOCATION": settings.REDIS_URL}}
        yield pair


@pytest.fixture
def web(pair: Pair, own_web: Web) -> Web:
    """The web process that the burst asks, on that Redis."""
    return own_web


def redis_state(web: Web) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{web.port}/readyz", timeout=10) as answer:
        state: str = json.load(answer)["redis"]
    return state


def test_every_process_goes_on_with_the_new_primary(
    pair: Pair,
    web: Web,
    service: Service,
    burst: Callable[..., Burst],
    coupons: Sequence[Coupon],
) -> None:
    Coupon.objects.update(admission="gate")
    RolloutChange.objects.create(flag="issue-worker", percent=50)
    for role in ("relay", "issuer", "worker"):
        service.start(role)
    service.start("reconciler", "--patience", "5")
    crowd = burst(3000, 1500)
    when_accepted(crowd, 50)
    pair.promote()
    wait_until(lambda: crowd.retries["503"] > 20, 30, "no request is refused for the moment")
    assert redis_state(web) == "read_only"
    pair.address.point_at(pair.replica)
    accepted = crowd.accepted
    wait_until(lambda: crowd.accepted > accepted, RECOVERED_SECONDS, "the gate does not admit")
    wait_until(lambda: redis_state(web) == "ok", RECOVERED_SECONDS, "readiness does not say so")
    answers = crowd.finish()
    assert {answer.status for answer in answers} <= {202, 409}
    when_decided(answers)
    # What was admitted and not replicated is released by the reconciler: who comes then gets it.
    wait_until(lambda: service.run("reconcile", "--patience", "5") == 0, 60, "the reconciler finds something", 1)
    when_decided(burst(400, 400).finish())
    assert [Coupon.objects.get(id=coupon.id).issued for coupon in coupons] == [STOCK, STOCK]
    assert {name: lines for name, lines in invariants.violations() if lines} == {}
