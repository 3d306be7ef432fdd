"""A consumer that hangs with a batch in hand, until the broker gives its partitions to another consumer."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from common.processes.lifecycle import StopFlag
from devstack.processes import wait_until
from kafka_bridge.client import group_lag
from kafka_bridge.consuming.consumer import GroupConsumer
from kafka_bridge.registry import ConsumerGroup
from tests.support.threads import in_another_session

# With these options of the client, a consumer that does not poll for six seconds loses its partitions.
SOON_EXPELLED = {"session.timeout.ms": 6000, "max.poll.interval.ms": 6000}


class Rebalance:
    """``second_try`` has what came of the batch when the hanging consumer woke up: None or its error."""

    def __init__(self, group: ConsumerGroup) -> None:
        self._group = group
        self._hanging = threading.Event()
        self._wake = threading.Event()
        self.second_try: list[BaseException | None] = []

    def run(self) -> None:
        """Returns when the hanging consumer has woken up and everything is committed."""
        zombie_stop, heir_stop = StopFlag(), StopFlag()
        zombie = consume_in_background(replace(self._group, handle=self._handle), zombie_stop)
        assert self._hanging.wait(30)
        heir = consume_in_background(self._group, heir_stop)
        wait_until(
            lambda: group_lag(self._group.group_id, self._group.topics) == 0, 60, "no other takes over the partition"
        )
        self._wake.set()
        wait_until(lambda: self.second_try, 20, "the zombie does not wake up")
        zombie_stop.request()
        heir_stop.request()
        zombie.result(30)
        heir.result(30)

    def _handle(self, values: Sequence[Any]) -> None:
        if self._wake.is_set():
            self._group.handle(values)
            return
        self._hanging.set()
        self._wake.wait(60)
        try:
            self._group.handle(values)
            self.second_try.append(None)
        except BaseException as error:
            self.second_try.append(error)
            raise


def consume_in_background(group: ConsumerGroup, stop: StopFlag) -> Future[Any]:
    """A consumer of the group in a thread, until ``stop``."""
    return in_another_session(lambda: GroupConsumer(group).run(stop))
