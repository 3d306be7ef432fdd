"""Rate of issuing three coupons by three issuer processes, each with one of the coupons, against one process."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path

from django.conf import settings

from coupons.messages import ISSUE_REQUESTED
from coupons.models import Coupon
from demo.processes import procfile_process
from devstack import ManagedProcess, wait_until
from kafka_bridge.client import Producer, make_producer
from kafka_bridge.models import ProcessHeartbeat
from kafka_bridge.partitioner import partition_of
from kafka_bridge.registry import ReceivedMessage, prefixed

from .interleave import Rates, take_turns
from .issuing import request_message
from .sale import new_coupon
from .servers import folder, process_environment
from .temporary import mark_outbox_published

ONE, SHARED = "one issuer", "three issuers"
COUPONS = 3
_UNITS = 10_000
_JOIN_SECONDS = 60.0
_ISSUE_SECONDS = 120.0
_POLL_SECONDS = 0.02


def measure(*, rounds: int) -> Rates:
    """Issue 30,000 coupons of three types per turn; returns coupons per second of one and of three processes."""
    producer = make_producer()
    with folder() as directory:
        return take_turns(
            {
                ONE: lambda: _turn(producer, directory, processes=1),
                SHARED: lambda: _turn(producer, directory, processes=COUPONS),
            },
            rounds=rounds,
        )


def _turn(producer: Producer, directory: Path, *, processes: int) -> float:
    mark_outbox_published()
    with _issuers(directory, processes) as started:
        coupons = [_coupon_on(partition) for partition in _one_partition_each(started)]
        # By turns, so that no coupon is finished before the others have begun.
        messages = [request_message(coupon) for _ in range(_UNITS) for coupon in coupons]
        began = time.perf_counter()
        _produce(producer, messages)
        wait_until(
            lambda: all(_is_sold_out(coupon) for coupon in coupons),
            _ISSUE_SECONDS,
            f"not every coupon was issued after {_ISSUE_SECONDS:.0f} s",
            _POLL_SECONDS,
        )
        return len(messages) / (time.perf_counter() - began)


@contextmanager
def _issuers(directory: Path, processes: int) -> Iterator[list[ManagedProcess]]:
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                procfile_process("issuer", process_environment(directory), directory / f"issuer-{number}.log")
            )
            for number in range(processes)
        ]


def _one_partition_each(started: list[ManagedProcess]) -> list[int]:
    """Wait until the processes hold every partition of the requests; return three, of as many processes as possible."""
    partitions = settings.KAFKA_ROUTES[ISSUE_REQUESTED].partitions

    def held() -> list[list[int]]:
        reports = ProcessHeartbeat.objects.filter(pid__in=[process.pid for process in started])
        return [[held["partition"] for held in report.partitions] for report in reports]

    wait_until(
        lambda: sorted(partition for each in held() for partition in each) == list(range(partitions)),
        _JOIN_SECONDS,
        "the issuers do not hold every partition of the requests",
    )
    shares = sorted(held(), key=len)
    return [shares[number % len(shares)][number // len(shares)] for number in range(COUPONS)]


def _coupon_on(partition: int) -> Coupon:
    """Create a coupon whose requests go to ``partition``."""
    partitions = settings.KAFKA_ROUTES[ISSUE_REQUESTED].partitions
    marker = secrets.token_hex(4)
    name = next(
        name
        for number in count()
        if partition_of((name := f"SHARED_{marker}_{number}").encode(), partitions) == partition
    )
    return new_coupon(_UNITS, coupon_type=name)


def _produce(producer: Producer, messages: list[ReceivedMessage]) -> None:
    for message in messages:
        producer.produce(prefixed(message.topic), value=message.value, key=message.key, headers=list(message.headers))
    if unacknowledged := producer.flush(30):
        raise AssertionError(f"{unacknowledged} messages were not acknowledged")


def _is_sold_out(coupon: Coupon) -> bool:
    coupon.refresh_from_db(fields=["issued"])
    return coupon.issued >= coupon.total_quantity
