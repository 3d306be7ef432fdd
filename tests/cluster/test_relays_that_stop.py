"""Relays stop for longer than their leases last and go on later, under load: nothing is lost or overtaken."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Collection, Sequence
from uuid import UUID

import pytest
from django.db import connection

from devstack import ManagedProcess, wait_until
from kafka_bridge.models import SHARDS
from tests.cluster.history import read_history
from tests.cluster.sale import REQUESTS, RESULTS, Sale
from tests.support.service import Service

pytestmark = pytest.mark.django_db(transaction=True)

RELAYS = 3
# A lease lasts ten seconds by the database's clock, and the others look every two.
_MOMENT_SECONDS = 40.0

# The owners of leases that have not expired, with the number of their shards, so that all shards have one.
_OWNERS = """
    SELECT owner, count(*) FROM kafka_bridge_relaylease WHERE expires_at > statement_timestamp() GROUP BY owner
"""
_MOST_IN_A_SECOND = """
    SELECT max(rows) FROM (
        SELECT count(*) OVER (ORDER BY created_at RANGE BETWEEN CURRENT ROW AND '1 second' FOLLOWING) AS rows
        FROM kafka_bridge_outboxmessage
    ) AS counted
"""


def owners() -> set[UUID]:
    """The relays that publish; empty while a shard has none."""
    with connection.cursor() as cursor:
        cursor.execute(_OWNERS)
        shards = dict(cursor.fetchall())
    return set(shards) if sum(shards.values()) == SHARDS else set()


def when_shared(number: int, *, without: Collection[UUID] = ()) -> set[UUID]:
    """Wait until so many relays share the shards, none of them of ``without``; returns them."""
    found: set[UUID] = set()

    def shared() -> bool:
        nonlocal found
        found = owners()
        return len(found) == number and found.isdisjoint(without)

    wait_until(shared, _MOMENT_SECONDS, f"{number} relays do not share the shards")
    return found


def signal_all(relays: Sequence[ManagedProcess], number: signal.Signals) -> None:
    for relay in relays:
        relay.send_signal(number)


def number_of_copies() -> int:
    copies = Counter(record.event_id for topic in (REQUESTS, RESULTS) for record in read_history(topic))
    return sum(copies.values()) - len(copies)


def most_rows_in_a_second() -> int:
    with connection.cursor() as cursor:
        cursor.execute(_MOST_IN_A_SECOND)
        (rows,) = cursor.fetchone() or (0,)
    return int(rows)


def test_relays_that_stop_past_their_leases_and_go_on_lose_and_reorder_nothing(sale: Sale, service: Service) -> None:
    relays = [service.processes["relay"]]
    relays += [service.start("relay", name=f"relay-{number}") for number in range(2, RELAYS + 1)]
    all_three = when_shared(RELAYS)
    sale.when_it_goes_on()

    first_two, last = relays[:2], relays[2:]
    signal_all(first_two, signal.SIGSTOP)
    (heir,) = when_shared(1)
    sale.when_it_goes_on()
    # Those that went on have rows in hand that the third has sent meanwhile, and no lease.
    signal_all(last, signal.SIGSTOP)
    signal_all(first_two, signal.SIGCONT)
    when_shared(2, without={heir})
    sale.when_it_goes_on()
    signal_all(last, signal.SIGCONT)
    assert when_shared(RELAYS) == all_three
    sale.when_it_goes_on()

    sale.assert_every_promise_kept()
    # A relay repeats what another sent and had not saved when it stopped, a fifth of a second of traffic, and what it
    # had in hand itself when it stopped.
    assert number_of_copies() <= RELAYS * most_rows_in_a_second()
