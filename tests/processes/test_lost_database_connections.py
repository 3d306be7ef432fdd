"""PostgreSQL ends every connection in the middle of a burst."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from django.db import connection

from coupons.models import Coupon
from tests.processes.conftest import Web, assert_in_the_middle_of, when_accepted, when_issued
from tests.support.burst import Burst
from tests.support.ledger import assert_guarantees_hold
from tests.support.service import Service

pytestmark = pytest.mark.django_db(transaction=True)

_TERMINATE = """
    SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""


def end_all_connections() -> int:
    with connection.cursor() as cursor:
        cursor.execute(_TERMINATE)
        (count,) = cursor.fetchone()
    return int(count)


def test_every_process_goes_on_with_new_connections(
    web: Web, service: Service, burst: Callable[..., Burst], coupons: Sequence[Coupon]
) -> None:
    processes = [service.start("relay"), service.start("issuer", "--batch-size", "50"), web.process]
    crowd = burst()
    when_issued(1)
    for accepted in (300, 600, 900):
        when_accepted(crowd, accepted)
        assert end_all_connections() >= 3
        assert_in_the_middle_of(crowd)
    assert_guarantees_hold(crowd, coupons)
    assert set(crowd.retries) <= {"503"}
    assert [process.poll() for process in processes] == [None, None, None]
