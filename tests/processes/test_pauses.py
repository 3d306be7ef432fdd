"""Operators pause real processes: every one obeys within two seconds and after a restart, and nothing is lost."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta

import pytest
from django.db import connection

from common.postgres.clock import database_time
from coupons import invariants
from coupons.issuance.accept import request_accept
from coupons.models import Coupon, IssueRequest, RolloutChange, UserCoupon
from devstack import wait_until
from kafka_bridge.models import GroupPause, OperatorAction, OutboxMessage, ProcessHeartbeat
from kafka_bridge.operating.group_pauses import PauseTarget, pause, resume
from kafka_bridge.outbox.published import anything_unpublished
from tests.processes.conftest import MOMENT_SECONDS
from tests.support.factories import CouponFactory
from tests.support.published import published_rows
from tests.support.service import Service, kill_group

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("redis_flushed")]

OBEYED_WITHIN = timedelta(seconds=2)
ISSUERS = ("issuer", "second issuer")
WORKER = "issue-worker"


class Stream:
    """Accepts a request every few milliseconds in a thread of its own."""

    def __init__(self, coupons: Sequence[Coupon]) -> None:
        self._coupons = coupons
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stream")
        self.accepted = 0

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._ended.wait(0.02):
                user_id = self.accepted + 1
                coupon = self._coupons[user_id % len(self._coupons)]
                request_accept(id_or_type=coupon.id, user_id=user_id, caller_id=user_id)
                self.accepted += 1
        finally:
            connection.close()


@contextmanager
def streaming(coupons: Sequence[Coupon]) -> Iterator[Stream]:
    stream = Stream(coupons)
    stream.start()
    try:
        yield stream
    finally:
        stream.end()


def by_worker() -> int:
    return IssueRequest.objects.filter(partition=-1).count()


def by_kafka() -> int:
    return IssueRequest.objects.exclude(partition=-1).count()


def accept_more(stream: Stream, count: int) -> None:
    """Wait until so many more requests are accepted: paused or not, the accept API takes them."""
    wanted = stream.accepted + count
    wait_until(lambda: stream.accepted >= wanted, MOMENT_SECONDS, "requests are no longer accepted")


def paused_partitions_of(issuers: int, since: datetime) -> Callable[[], bool]:
    """Whether so many issuers have said since then that they hold all five partitions, each of them paused."""

    def look() -> bool:
        beats = ProcessHeartbeat.objects.filter(groups=["issue"], seen_at__gt=since).values_list(
            "partitions", flat=True
        )
        states = [held["state"] for partitions in beats for held in partitions]
        return len(beats) == issuers and all(beats) and states == ["paused"] * 5

    return look


def paused_window(target: PauseTarget) -> tuple[datetime, datetime]:
    """Resume ``target``; returns when it must have stood still."""
    begin = GroupPause.objects.get(consumer_group=target.name).created_at + OBEYED_WITHIN
    end = database_time()
    assert begin < end
    assert resume(target, actor="olga", reason="done")
    return begin, end


def test_every_process_obeys_also_after_it_was_killed_and_nothing_is_lost_or_reordered(service: Service) -> None:
    coupons = CouponFactory.create_batch(3, admission="gate", total_quantity=100_000)
    RolloutChange.objects.create(flag="issue-worker", percent=50)
    relay = service.start("relay")
    issuers = [service.start("issuer", name=name) for name in ISSUERS]
    worker = service.start("worker")
    with streaming(coupons) as stream:
        wait_until(lambda: by_worker() >= 20 and by_kafka() >= 20, MOMENT_SECONDS, "nothing is issued")

        paused = service.command("control_group", "issue", "pause", "--reason", "wrong terms")
        assert (paused.returncode, "issue is paused, since" in paused.stdout) == (0, True), paused.stderr
        pause(PauseTarget(WORKER), actor="olga", reason="wrong terms")
        wait_until(paused_partitions_of(2, database_time()), MOMENT_SECONDS, "an issuer goes on")
        pause(PauseTarget("relay"), actor="olga", reason="a broker moves")
        for process in (*issuers, worker, relay):
            kill_group(process)
        started = database_time()
        for process in (*issuers, worker, relay):
            process.start()
        beats = ProcessHeartbeat.objects.filter(role="relay", started_at__gt=started)
        wait_until(beats.exists, MOMENT_SECONDS, "the relay does not start")
        wait_until(paused_partitions_of(2, database_time()), MOMENT_SECONDS, "an issuer goes on after its restart")
        accept_more(stream, 100)
        # Each has something that it would do.
        assert anything_unpublished()
        assert published_rows().exclude(event_id__in=IssueRequest.objects.values("request_id")).exists()
        windows = {PauseTarget(name): paused_window(PauseTarget(name)) for name in ("issue", WORKER, "relay")}
    wait_until(lambda: IssueRequest.objects.count() == stream.accepted, MOMENT_SECONDS, "requests were lost")

    decided = IssueRequest.objects.all()
    assert not decided.exclude(partition=-1).filter(processed_at__range=windows[PauseTarget("issue")]).exists()
    assert not decided.filter(partition=-1, processed_at__range=windows[PauseTarget(WORKER)]).exists()
    written = OutboxMessage.objects.filter(topic="coupon-issue-request").values_list("event_id", flat=True)
    published = decided.filter(request_id__in=written, published_at__range=windows[PauseTarget("relay")])
    assert not published.exists()

    assert set(decided.values_list("status", flat=True)) == {"SUCCESS"}
    assert UserCoupon.objects.count() == stream.accepted
    assert {name: lines for name, lines in invariants.violations() if lines} == {}
    assert_in_order()
    actions = OperatorAction.objects.order_by("id").values_list("action", "subject")
    assert list(actions) == [
        *(("group.pause", name) for name in ("issue", WORKER, "relay")),
        *(("group.resume", name) for name in ("issue", WORKER, "relay")),
    ]  # fmt: skip


def assert_in_order() -> None:
    """Of each coupon, the requests were published in the order of their rows, and decided in the order of the topic."""
    row_ids = dict(OutboxMessage.objects.values_list("event_id", "id"))
    rows: dict[str, list[int]] = defaultdict(list)
    times: dict[str, list[datetime]] = defaultdict(list)
    published = IssueRequest.objects.exclude(partition=-1).order_by("partition", "offset")
    for coupon_type, request_id, processed_at in published.values_list("coupon_type", "request_id", "processed_at"):
        rows[coupon_type].append(row_ids[request_id])
        times[coupon_type].append(processed_at)
    assert len(rows) == 3
    for coupon_type, ids in rows.items():
        assert ids == sorted(ids)
        assert times[coupon_type] == sorted(times[coupon_type])
