"""A sale on real processes, and what must hold of it when brokers have failed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from signal import SIGCONT, SIGSTOP
from uuid import UUID

from django.db.models import QuerySet

from coupons.handlers import ISSUE
from coupons.models import Coupon, IssueRequest
from devstack import ManagedProcess, wait_until
from devstack.procinfo import identify, is_stopped
from kafka_bridge.models import OutboxMessage
from tests.cluster.history import (
    Offsets,
    displaced_results,
    first_copies,
    overtaken_requests,
    read_history,
    scattered_keys,
    undecided_before,
)
from tests.cluster.load import Load
from tests.support.kafka import committed_offsets
from tests.support.ledger import assert_guarantees_hold

REQUESTS = "coupon-issue-request"
RESULTS = "coupon-issue-response"
# Decisions on the hot coupon that show that the work goes on: more than one batch.
_STEP = 150
_MOMENT_SECONDS = 60.0


class Sale:
    """The load, the processes that answer it, and what was seen of their offsets on the way."""

    def __init__(self, load: Load, coupons: Sequence[Coupon], issuers: Sequence[ManagedProcess]) -> None:
        """``coupons`` must be new, the first is the hot one."""
        self.load = load
        self._coupons = coupons
        self._issuers = issuers
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
        """Remember what a crash of the issuers at this moment would leave behind, for the check at the end."""
        # The first time takes as long as the brokers need to find a coordinator.
        committed_offsets(ISSUE.group_id, REQUESTS)
        with _frozen(self._issuers):
            # In this order: what is decided in between is no reproach.
            committed = committed_offsets(ISSUE.group_id, REQUESTS)
            self._seen.append(Offsets(committed, _decided()))

    def assert_every_promise_kept(self) -> None:
        """End the load and hold answers, PostgreSQL, topics and offsets against each other: I1 to I5 and I8.

        No fault of a broker may have been noticed by a client.
        """
        assert_guarantees_hold(self.load, self._coupons)
        assert not self.load.retries
        requests, results = read_history(REQUESTS), read_history(RESULTS)
        written_requests, written_results = _written(REQUESTS), _written(RESULTS)
        assert {record.event_id for record in requests} == {*written_requests} == {*self.load.spans}
        assert {record.event_id for record in results} == {*written_results}
        assert len(written_results) == len(written_requests)
        assert scattered_keys([*requests]) + scattered_keys([*results]) == []
        for published in first_copies(requests).values():
            assert overtaken_requests(published, self.load.spans) == []
        for published in first_copies(results).values():
            concerned = {*published}
            assert displaced_results(published, [event for event in written_results if event in concerned]) == []
        self._seen.append(Offsets(committed_offsets(ISSUE.group_id, REQUESTS), _decided()))
        for offsets in self._seen:
            assert undecided_before(offsets, requests) == []

    def _decided_hot(self) -> QuerySet[IssueRequest]:
        return IssueRequest.objects.filter(coupon=self._coupons[0])

    def _when_hot_decided(self, count: int) -> None:
        wait_until(
            lambda: self._decided_hot().count() >= count,
            _MOMENT_SECONDS,
            f"less than {count} requests for the hot coupon decided",
        )


def _decided() -> set[UUID]:
    return set(IssueRequest.objects.values_list("request_id", flat=True))


def _written(topic: str) -> list[UUID]:
    """The events of a topic in the order of the outbox."""
    return list(OutboxMessage.objects.filter(topic=topic).order_by("id").values_list("event_id", flat=True))


@contextmanager
def _frozen(processes: Sequence[ManagedProcess]) -> Iterator[None]:
    """Processes stopped by SIGSTOP, which go on afterwards."""
    try:
        for process in processes:
            process.send_signal(SIGSTOP)
        for process in processes:
            identity = identify(process.pid)
            assert identity is not None
            wait_until(partial(is_stopped, identity), _MOMENT_SECONDS, f"{process.name} goes on")
        yield
    finally:
        for process in processes:
            process.send_signal(SIGCONT)
