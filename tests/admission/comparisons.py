"""What tests of the reconciler share: comparisons, also beside a crowd, and requests that are old."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

from django.db import connection
from django.db.models.functions import Now
from django_redis import get_redis_connection
from uuid_utils.compat import uuid7

from common.processes.lifecycle import StopFlag
from coupons.admission import ADMISSIONS, AdmissionRequest
from coupons.admission.gate.store import GateStore
from coupons.models import Coupon, IssueRequest, Reservation
from coupons.reconciliation.reconciler import Reconciled, Reconciler
from kafka_bridge.models import OutboxMessage

from .conftest import accept, ask, at_once

PATIENCE = 60.0


def redis() -> Any:
    return get_redis_connection("default")


def nothing_left_to_read() -> int:
    return 0


def compare(*, repair: bool = False, patience: float = PATIENCE, lag: Callable[[], int] | None = None) -> Reconciled:
    return Reconciler(patience, once=True, lag=lag or nothing_left_to_read).run(StopFlag(), repair=repair)


def found(**options: Any) -> dict[str, int]:
    return compare(**options).found.counts


def mend() -> dict[str, int]:
    """Mend everything, see that it is mended and stays so; returns what was found."""
    reconciled = compare(repair=True)
    assert reconciled.outage is None
    assert reconciled.remaining.counts == {}
    assert compare(repair=True).found.counts == {}
    return reconciled.found.counts


def make_old(coupon: Coupon) -> None:
    """As if everything under way had been under way for two minutes."""
    ago = Now() - timedelta(minutes=2)
    Reservation.objects.update(created_at=ago)
    OutboxMessage.objects.update(created_at=ago)
    OutboxMessage.objects.exclude(published_at=None).update(published_at=ago)
    IssueRequest.objects.update(processed_at=ago)
    for user, at in redis().zrange(GateStore(coupon.id).keys.pending, 0, -1, withscores=True):
        redis().zadd(GateStore(coupon.id).keys.pending, {user: at - 120_000})


def leave_in_gate(coupon: Coupon, user_id: int) -> AdmissionRequest:
    """A web process was killed between gate and insert."""
    candidate = AdmissionRequest(uuid7(), user_id, coupon.id, coupon.total_quantity)
    ADMISSIONS["gate"].admit([candidate])
    assert candidate.newly_reserved
    return candidate


def publish_everything() -> None:
    OutboxMessage.objects.filter(published_at=None).update(published_at=Now())


def open_past_patience(coupon_id: int) -> set[bytes]:
    """Who has been open for longer than ``Running`` is patient, by Redis's clock."""
    return set(GateStore(coupon_id).pending_for(Running.PATIENCE, limit=10_000))


class Running:
    """Compares and mends again and again beside the crowd."""

    PATIENCE = 0.4

    def __init__(self) -> None:
        self._stop = StopFlag()
        self._thread = threading.Thread(target=self._run)
        self.found: dict[str, int] = {}
        self.times = 0

    def __enter__(self) -> Running:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.request()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stop:
                reconciled = Reconciler(self.PATIENCE, once=True, lag=lambda: 1).run(StopFlag(), repair=True)
                for name, number in reconciled.found.counts.items():
                    self.found[name] = self.found.get(name, 0) + number
                self.times += 1
        finally:
            connection.close()


def crowd_of_three_lines(coupon: Coupon, until: Callable[[Running], object]) -> Running:
    """What a reconciler does beside three lines of users who ask one after the other."""

    def ask_one_after_the_other(users: range) -> None:
        for user_id in users:
            assert ask(coupon, user_id) == "accepted"
            if until(running):
                return

    accept(coupon, 1)
    with Running() as running:
        lines = [range(start, start + 10_000) for start in (10_000, 20_000, 30_000)]
        at_once([partial(ask_one_after_the_other, users) for users in lines], threads=3)
    return running


def has_run_twice(running: Running) -> bool:
    return running.times >= 2


def has_found_leaks(running: Running) -> bool:
    return "gate-leaked" in running.found
