"""A sale on real processes, and what must hold of it when brokers have failed."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from django.db import transaction
from django.db.models import QuerySet

from coupons.consumer_groups import ISSUE
from coupons.models import Coupon, IssueRequest
from devstack import wait_until
from kafka_bridge.models import OutboxMessage
from tests.cluster.history import (
    Offsets,
    displaced_results,
    first_copies,
    lost_events,
    overtaken_requests,
    read_history,
    scattered_keys,
    undecided_before,
)
from tests.cluster.load import Load
from tests.processes.conftest import when_waiting_for_a_lock
from tests.support.kafka import committed_offsets
from tests.support.ledger import assert_guarantees_hold

REQUESTS = "coupon-issue-request"
RESULTS = "coupon-issue-response"
# Decisions on the hot coupon that show that the work goes on: more than one batch.
_STEP = 150
_MOMENT_SECONDS = 60.0


class Sale:
    """The load, and what was seen of the issuers' offsets on the way."""

    def __init__(self, load: Load, coupons: Sequence[Coupon]) -> None:
        """``coupons`` must have been new before ``load``, the first is the hot one."""
        self.load = load
        self._coupons = coupons
        self._seen: list[Offsets] = []

    def when_under_way(self) -> None:
        """Wait until the hot coupon is issued, and see that much of it is left."""
        self._when_hot_decided(50)
        hot = Coupon.objects.get(pk=self._coupons[0].pk)
        assert hot.issued < hot.total_quantity / 2

    def when_it_goes_on(self) -> None:
        """Wait until further requests for the hot coupon are decided."""
        self._when_hot_decided(self._decided_hot().count() + _STEP)

    def when_accepted(self, count: int) -> None:
        """Wait until so many more requests have their answer."""
        wanted = len(self.load.answers) + count
        wait_until(
            lambda: len(self.load.answers) >= wanted, _MOMENT_SECONDS, f"not accepted; {dict(self.load.retries)}"
        )

    def hot_partition(self) -> int:
        """The partition on which the requests for the hot coupon lie."""
        (partition,) = set(self._decided_hot().values_list("partition", flat=True))
        return partition

    def look_at_offsets(self) -> None:
        """Remember, for the check at the end, what a crash of the issuers would leave behind in the middle of a batch.

        Waits until one of them is there.
        """
        with transaction.atomic():
            assert list(Coupon.objects.select_for_update())
            when_waiting_for_a_lock("consume_coupons")
            self._remember_offsets()

    def assert_every_promise_kept(self) -> None:
        """End the load and hold answers, PostgreSQL, topics and offsets against each other: I1 to I5 and I8.

        No fault of a broker may have been noticed by a client.
        """
        assert_guarantees_hold(self.load, self._coupons)
        assert not self.load.retries
        self._remember_offsets()
        requests, results = read_history(REQUESTS), read_history(RESULTS)
        written_requests, written_results = _written(REQUESTS), _written(RESULTS)
        assert set(written_requests) == set(self.load.spans)
        assert len(written_results) == len(written_requests)
        lines = [
            *lost_events(requests, written_requests),
            *lost_events(results, written_results),
            *scattered_keys(requests),
            *scattered_keys(results),
        ]
        for published in first_copies(requests).values():
            lines += overtaken_requests(published, self.load.spans)
        for published in first_copies(results).values():
            lines += displaced_results(published, written_results)
        for offsets in self._seen:
            lines += undecided_before(offsets, requests)
        assert lines == []

    def _remember_offsets(self) -> None:
        # In this order: what is decided in between is no reproach.
        committed = committed_offsets(ISSUE.group_id, REQUESTS)
        decided = set(IssueRequest.objects.values_list("request_id", flat=True))
        self._seen.append(Offsets(committed, decided))

    def _decided_hot(self) -> QuerySet[IssueRequest]:
        return IssueRequest.objects.filter(coupon=self._coupons[0])

    def _when_hot_decided(self, count: int) -> None:
        wait_until(
            lambda: self._decided_hot().count() >= count,
            _MOMENT_SECONDS,
            f"less than {count} requests for the hot coupon decided",
        )


def _written(topic: str) -> list[UUID]:
    """The events of a topic in the order of the outbox."""
    return list(OutboxMessage.objects.filter(topic=topic).order_by("id").values_list("event_id", flat=True))
