"""PostgreSQL ends every connection in the middle of a burst."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from django.db import connection

from coupons.models import Coupon
from devstack.processes import wait_until
from tests.processes.conftest import Web, assert_in_the_middle_of, when_accepted, when_issued
from tests.support.burst import Burst
from tests.support.ledger import assert_guarantees_hold
from tests.support.service import Service

pytestmark = pytest.mark.django_db(transaction=True)

_TERMINATE = """
    SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""


_CONNECTED = """
    SELECT DISTINCT application_name FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""
_EVERYBODY = {"coupons web", "coupons relay_outbox", "coupons consume_coupons"}


def everybody_is_connected() -> bool:
    with connection.cursor() as cursor:
        cursor.execute(_CONNECTED)
        return {name for (name,) in cursor.fetchall()} >= _EVERYBODY


def end_all_connections() -> None:
    wait_until(everybody_is_connected, 20, "not every process has come back to the database")
    with connection.cursor() as cursor:
        cursor.execute(_TERMINATE)


def test_every_process_goes_on_with_new_connections(
    web: Web, service: Service, burst: Callable[..., Burst], coupons: Sequence[Coupon]
) -> None:
    processes = [service.start("relay"), service.start("issuer", "--batch-size", "50"), web.process]
    # Many enough that the accept API is still asked, and so connected, when the others have come back.
    crowd = burst(9000, 600)
    when_issued(1)
    for accepted in (300, 600, 900):
        when_accepted(crowd, accepted)
        end_all_connections()
        assert_in_the_middle_of(crowd)
    assert_guarantees_hold(crowd, coupons)
    assert set(crowd.retries) <= {"503"}
    assert [process.poll() for process in processes] == [None, None, None]
