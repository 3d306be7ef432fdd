"""A relay that publishes nothing for a minute unless a process wakes it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

import pytest
from django.db import connection

from common.processes.lifecycle import StopFlag
from devstack.processes import wait_until
from kafka_bridge.outbox.wake import CHANNEL
from kafka_bridge.relaying import relay
from tests.support.threads import in_another_session

# Longer than any test waits for a message.
PAUSE_SECONDS = 60.0


class RestingRelay:
    """``passes`` is the number of its passes while it has nothing to publish."""

    def __init__(self) -> None:
        self.passes = 0
        self._counter = count(1)

    def tick(self) -> None:
        self.passes = next(self._counter)


@contextmanager
def resting_relay() -> Iterator[RestingRelay]:
    """A relay in another session that listens, has found the outbox empty, and polls again after a minute."""
    state, stop = RestingRelay(), StopFlag()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relay, "_BUSY_PAUSE", PAUSE_SECONDS)
        patch.setattr(relay, "_IDLE_PAUSE", PAUSE_SECONDS)
        running = in_another_session(lambda: relay.Relay(tick=state.tick).run(stop))
        try:
            # It begins to listen after its first pass, and looks once more.
            wait_until(lambda: running.done() or state.passes >= 2, 20, "the relay does not begin", 0.01)
            yield state
        finally:
            stop.request()
            running.result(30)


def notify() -> None:
    """What a process does after a commit."""
    with connection.cursor() as cursor:
        cursor.execute(f"NOTIFY {CHANNEL}")
