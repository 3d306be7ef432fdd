"""What tests of the issue worker share: the rollout, and workers that work or are killed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from django.db import connection
from django_redis import get_redis_connection
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from common.processes.lifecycle import StopFlag
from coupons.issue_worker import IssueWorker
from coupons.models import IssueRequest, Reservation
from coupons.redis_queue.queue import QUEUE, RedisQueue
from devstack.ports import free_port
from kafka_bridge.models import OutboxMessage
from tests.support.messages import message
from tests.support.published import unpublished_rows

from .conftest import issue


def in_list() -> list[str]:
    return [text.decode() for text in get_redis_connection("default").lrange(QUEUE, 0, -1)]


def by_worker() -> set[int]:
    """The users whose requests are under way through the list."""
    return set(Reservation.objects.filter(by_worker=True).values_list("user_id", flat=True))


def work(worker: IssueWorker | None = None) -> None:
    """A worker decides everything that it finds."""
    worker = worker or IssueWorker()
    while worker.claim_and_handle(StopFlag()):
        pass


def issue_by_kafka() -> None:
    """The relay and the issuer do what is theirs."""
    rows = list(unpublished_rows().filter(event_type="coupon.issue.requested.v1").order_by("id"))
    issue([message(bytes(row.payload or b"")) for row in rows])
    OutboxMessage.objects.filter(id__in=[row.id for row in rows]).update(published_at="2026-01-01T00:00:00Z")


def nobody() -> Redis:
    """A client of a Redis that is not there."""
    return Redis(port=free_port(), retry=Retry(NoBackoff(), 0))


def take_for_dead() -> None:
    """Let the time run out after which the only worker, which says nothing, counts as dead."""
    redis = get_redis_connection("default")
    [alive] = redis.keys("{issue-worker}:alive:*")
    redis.delete(alive)


def killed_with(batch: int) -> None:
    """A worker took so many requests and was killed before it decided them."""
    assert len(RedisQueue().claim(batch)[0]) == batch
    take_for_dead()


def succeeded() -> int:
    return IssueRequest.objects.filter(status="SUCCESS").count()


def until(done: threading.Event, work: Callable[[], None]) -> None:
    """Do it again and again, and once more at the end, in a session of its own."""
    try:
        while not done.wait(0.002):
            work()
        work()
    finally:
        connection.close()


def with_everybody_at_work(during: Callable[[], None]) -> None:
    """Two workers and Kafka's issuer decide while ``during`` runs."""
    done = threading.Event()
    workers = [IssueWorker(batch_size=7), IssueWorker(batch_size=5)]
    with ThreadPoolExecutor(3) as pool:
        busy = [pool.submit(until, done, partial(work, worker)) for worker in workers]
        busy.append(pool.submit(until, done, issue_by_kafka))
        try:
            during()
        finally:
            done.set()
        for one in busy:
            one.result(60)
