"""Several relays and issuers at once, and partitions that change hands in the middle of a burst."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from coupons.models import Coupon
from tests.processes.conftest import assert_in_the_middle_of, when_issued, when_published
from tests.support.burst import Burst
from tests.support.factories import CouponFactory
from tests.support.ledger import assert_guarantees_hold
from tests.support.service import Service

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def coupons(transactional_db: None) -> list[Coupon]:
    """Enough of them that every partition has some."""
    return CouponFactory.create_batch(10, total_quantity=40)


def test_relays_and_issuers_come_and_go_and_nobody_has_two(
    service: Service, burst: Callable[..., Burst], coupons: Sequence[Coupon]
) -> None:
    relay = service.start("relay", name="relay-1")
    service.start("relay", name="relay-2")
    issuers = [service.start("issuer", "--batch-size", "20", name=f"issuer-{number}") for number in (1, 2)]
    crowd = burst()
    when_issued(20)
    service.start("issuer", "--batch-size", "20", "--concurrency", "2", name="issuer-3")
    when_published(400)
    assert relay.stop() == 0
    for issuer in issuers:
        issuer.kill()
    assert_in_the_middle_of(crowd)
    assert_guarantees_hold(crowd, coupons)
