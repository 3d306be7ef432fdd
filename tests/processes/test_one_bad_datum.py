"""One bad datum of any kind stops nothing but itself: all other users are served as before, at the usual pace.

The whole system runs and has served a crowd; then each test puts one bad datum in and has another crowd served.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.db import connection
from django.test import TransactionTestCase
from pytest_django import DjangoDbBlocker

from demo.processes import wait_until_ready
from devstack import wait_until
from kafka_bridge.models import DeadLetter
from tests.processes.bad_data import DATA
from tests.processes.conftest import Web
from tests.processes.running_shop import SECONDS, System

pytestmark = pytest.mark.django_db(transaction=True)
# So much longer than without the bad datum a step may take; less than two seconds is noise on a busy machine.
RATIO = 5.0
NOISE_SECONDS = 2.0


@pytest.fixture(scope="module")
def system(
    shared_web: Web, django_db_blocker: DjangoDbBlocker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[System]:
    """The system for all tests of this module, which do not empty the tables after each other."""
    with django_db_blocker.unblock(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransactionTestCase, "_fixture_teardown", lambda case: None)
        if shared_web.process.poll() is not None:
            shared_web.process.start()
        wait_until_ready(shared_web.process, shared_web.port)
        system = System(shared_web, tmp_path_factory.mktemp("system"))
        try:
            yield system
        finally:
            system.stop()
            connection.close()


@pytest.mark.parametrize("kind", DATA)
def test_one_bad_datum_stops_nothing_but_itself(kind: str, system: System) -> None:
    bad, shop = DATA[kind], system.shop()
    earlier = list(DeadLetter.objects.values_list("id", flat=True))
    shows = bad.put(shop)
    beside = shop.serve_crowd()
    wait_until(shows, SECONDS, f"nothing shows of {kind}", 0.2)

    slow = {
        step: (shop.usual[step], seconds)
        for step, seconds in beside.items()
        if seconds > RATIO * max(shop.usual[step], NOISE_SECONDS)
    }
    assert not slow
    letters = DeadLetter.objects.exclude(id__in=earlier)
    assert set(letters.values_list("consumer_group", flat=True)) == set(bad.dead_letters)
    assert [name for name, process in shop.service.processes.items() if process.poll() is not None] == []
    system.is_sound = True
