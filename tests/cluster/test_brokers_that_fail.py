"""Brokers die, vanish and freeze under load: no client notices, nothing is lost, doubled or overtaken."""

from __future__ import annotations

import os

import pytest

from coupons.consumer_groups import ISSUE
from tests.cluster.brokers import Cluster
from tests.cluster.sale import REQUESTS, Sale
from tests.support.published import published_rows

pytestmark = pytest.mark.django_db(transaction=True)

# Longer than a broker's session (3 s), a client's request (3 s) and a consumer's membership (6 s).
OUTAGE_SECONDS = float(os.environ.get("CLUSTER_OUTAGE_SECONDS", "8"))
# A topic that these tests do not use, on the same brokers.
PROBE = "order-cancelled"


def test_a_killed_broker_that_starts_again_costs_nothing(cluster: Cluster, sale: Sale) -> None:
    sale.when_under_way()
    coordinator = cluster.brokers[cluster.coordinator(ISSUE.group_id)]
    coordinator.kill()
    coordinator.start()
    sale.when_it_goes_on()
    sale.look_at_offsets()
    cluster.when_whole()
    sale.assert_every_promise_kept()


def test_two_brokers_go_on_without_the_leader_and_what_only_that_one_had(cluster: Cluster, sale: Sale) -> None:
    sale.when_under_way()
    leader = cluster.leader(REQUESTS, sale.hot_partition())
    followers = [part for number, part in cluster.brokers.items() if number != leader]
    for part in followers:
        part.freeze()
    # Whatever the leader takes now, it takes into its grave.
    sale.when_accepted(200)
    cluster.brokers[leader].kill()
    for part in followers:
        part.thaw()
    cluster.when_fenced(leader)
    sale.when_it_goes_on()
    sale.look_at_offsets()
    sale.assert_every_promise_kept()


def test_one_broker_alone_acknowledges_nothing_and_everything_is_issued_when_the_others_return(
    cluster: Cluster, sale: Sale
) -> None:
    sale.when_under_way()
    leader = cluster.leader(REQUESTS, sale.hot_partition())
    other = min(number for number in cluster.brokers if number != leader)
    for number in (leader, other):
        cluster.brokers[number].kill()
    cluster.assert_acknowledges_nothing(PROBE, OUTAGE_SECONDS)
    published = published_rows().count()
    sale.when_accepted(200)
    assert published_rows().count() == published
    for number in (leader, other):
        cluster.brokers[number].start()
    sale.when_it_goes_on()
    sale.look_at_offsets()
    cluster.when_whole()
    sale.assert_every_promise_kept()


def test_a_frozen_leader_is_left_behind_and_overwrites_nothing_when_it_wakes(cluster: Cluster, sale: Sale) -> None:
    sale.when_under_way()
    leader = cluster.leader(REQUESTS, sale.hot_partition())
    cluster.brokers[leader].freeze()
    cluster.when_fenced(leader)
    cluster.assert_silent(leader, OUTAGE_SECONDS)
    sale.when_it_goes_on()
    cluster.brokers[leader].thaw()
    sale.when_it_goes_on()
    sale.look_at_offsets()
    cluster.when_whole()
    sale.assert_every_promise_kept()
