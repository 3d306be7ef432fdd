"""A worker of the Redis queue that an operator has paused claims nothing, and gives back what it has claimed."""

from __future__ import annotations

import pytest
from django.db import OperationalError
from django_redis import get_redis_connection
from pytest_django import Settings

from common.processes.lifecycle import StopFlag
from coupons.issue_worker import IssueWorker
from coupons.models import IssueRequest
from devstack import wait_until
from kafka_bridge.consuming.batch import BatchHandler
from tests.support.threads import in_another_session

from .conftest import MakeGate, accept
from .workers import in_list, succeeded

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.mark.usefixtures("everybody", "nothing_is_pushed_again")
def test_a_worker_that_is_paused_while_its_batch_fails_gives_it_back_in_order(
    make_gate: MakeGate, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.CONSUMER_BACKOFF_SECONDS = 0.05
    tries, paused, stop = [], StopFlag(), StopFlag()
    coupon = make_gate()
    requests = [str(accept(coupon, user_id).request_id) for user_id in range(1, 6)]

    def fail(handler: BatchHandler, batch: object, stop: StopFlag) -> None:
        tries.append(batch)
        raise OperationalError("away")

    with monkeypatch.context() as patched:
        patched.setattr(BatchHandler, "handle", fail)
        worker = IssueWorker(batch_size=3, is_paused=lambda: bool(paused))
        running = in_another_session(lambda: worker.run(stop))
        wait_until(lambda: len(tries) >= 2, 30, "nothing is tried")
        assert in_list() == requests[3:]
        paused.request()
        wait_until(lambda: in_list() == requests, 30, "it keeps what it has claimed")
        assert get_redis_connection("default").keys("{issue-worker}:backup:*") == []
    accept(coupon, 6)
    assert not IssueRequest.objects.exists()
    paused.requested = False
    wait_until(lambda: succeeded() == 6, 30, "it does not go on")
    stop.request()
    running.result(30)
    order = IssueRequest.objects.order_by("-remaining").values_list("user_id", flat=True)
    assert list(order) == [1, 2, 3, 4, 5, 6]
