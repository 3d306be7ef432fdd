"""Twenty thousand users for a thousand coupons, whatever the admission, while chance kills and empties what it hits."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import pytest
from django.db.models import Count
from django_redis import get_redis_connection

from coupons import invariants
from coupons.models import Coupon, IssueRequest, UserCoupon
from demo.processes import wait_until_ready
from devstack import wait_until
from kafka_bridge.models import DeadLetter
from tests.processes.conftest import Web
from tests.support.burst import Burst
from tests.support.factories import CouponFactory
from tests.support.ledger import when_decided
from tests.support.service import Service, kill_group

pytestmark = pytest.mark.django_db(transaction=True)

USERS = 20_000
STOCK = 1_000
# How often each process is killed, and Redis emptied.
TIMES = 2
SECONDS = 240.0


class Chance:
    """Kills every process and empties Redis, ``TIMES`` times each in random order; starts again what it killed."""

    def __init__(self, web: Web, service: Service, seed: int) -> None:
        self._random = random.Random(seed)
        self._web = web
        self._processes = {"web": web.process, **service.processes}
        self._thread = threading.Thread(target=self._run, name="chance", daemon=True)

    def __enter__(self) -> Chance:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.join()

    def _run(self) -> None:
        disasters = TIMES * ["redis", *self._processes]
        self._random.shuffle(disasters)
        for chosen in disasters:
            time.sleep(self._random.uniform(0.2, 2.0))
            if chosen == "redis":
                get_redis_connection("default").flushdb()
            else:
                kill_group(self._processes[chosen])
                self._processes[chosen].start()
            if chosen == "web":
                wait_until_ready(self._web.process, self._web.port)


@pytest.fixture
def coupon(transactional_db: None, redis_flushed: None, admission: str) -> Coupon:
    return CouponFactory.create(total_quantity=STOCK, admission=admission)


@pytest.fixture
def coupons(coupon: Coupon) -> Sequence[Coupon]:
    return [coupon]


@pytest.fixture
def crowd(web: Web, coupon: Coupon) -> Iterator[Burst]:
    burst = Burst(web.port, [coupon], requests=USERS, users=USERS)
    yield burst
    burst.stop()


@pytest.mark.parametrize("admission", ["queue", "gate", "reserve"])
def test_exactly_the_stock_is_issued_and_every_promise_kept(
    web: Web, service: Service, crowd: Burst, burst: Callable[..., Burst], coupon: Coupon, admission: str
) -> None:
    service.start("relay")
    service.start("issuer")
    service.start("reconciler", "--patience", "5")
    with Chance(web, service, seed=20_000):
        crowd.start()
        answers = crowd.finish(SECONDS)
    print(f"sent again: {dict(crowd.retries)}")
    when_decided(answers, SECONDS)
    # The reconciler releases what a killed process had reserved: the next user gets it.
    wait_until(lambda: service.run("reconcile", "--patience", "5") == 0, SECONDS, "the reconciler finds something", 1)
    late = burst(300, 300).finish()
    when_decided(late, SECONDS)

    coupon.refresh_from_db()
    assert coupon.issued == UserCoupon.objects.count() == STOCK
    assert not UserCoupon.objects.values("user_id").annotate(number=Count("id")).filter(number__gt=1).exists()
    assert Counter(answer.status for answer in answers).keys() <= ({202} if admission == "queue" else {202, 409})
    assert not IssueRequest.objects.exclude(status__in=["SUCCESS", "FAILED"]).exists()
    assert not DeadLetter.objects.exists()
    assert {name: lines for name, lines in invariants.violations() if lines} == {}
