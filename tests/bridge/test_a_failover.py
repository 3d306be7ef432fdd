"""A failover to a server that lacks the last commits and assigns their ids again, hidden by a pooler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from common.processes.lifecycle import StopFlag
from devstack.processes import wait_until
from kafka_bridge.models import Alert, OutboxMessage
from kafka_bridge.relaying.relay import Relay
from tests.stub_app.events import publish_numbers
from tests.stub_app.routes import NUMBERS
from tests.support.database_copy import copy_of_the_server, use_server
from tests.support.kafka import read_to_end
from tests.support.pooler import Pooler, pgbouncer
from tests.support.published import published_rows, unpublished_rows
from tests.support.threads import in_another_session

from .scenes import numbers

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("topics")]

# As many rows are lost as the copy then gets: neither a read above the position nor the sequence shows that the ids are
# those of other rows. More than 32, by which a recovered sequence may be ahead.
LOST = 100


@pytest.fixture
def pooler(tmp_path: Path) -> Iterator[Pooler]:
    with pgbouncer(tmp_path) as running:
        yield running


@pytest.fixture
def stop_relay(pooler: Pooler) -> Iterator[Callable[[], None]]:
    """Stops the relay behind the pooler, where the command would refuse to run: its connection outlives a failover.

    Call it while the server is there.
    """
    stop = StopFlag()

    def relay() -> None:
        use_server(pooler.port)
        Relay().run(stop)

    running = in_another_session(relay)

    def stop_and_wait() -> None:
        stop.request()
        running.result(30)

    yield stop_and_wait
    stop_and_wait()


def on_server(port: int, work: Callable[[], Any]) -> Any:
    """Run ``work`` in a session of the server on ``port``."""

    def run() -> Any:
        use_server(port)
        return work()

    return in_another_session(run).result(60)


def ids() -> set[int]:
    return set(OutboxMessage.objects.values_list("id", flat=True))


def test_rows_with_ids_that_the_server_before_had_assigned_are_published(
    pooler: Pooler, stop_relay: Callable[[], None], tmp_path: Path
) -> None:
    publish_numbers(range(5))
    wait_until(lambda: published_rows().count() == 5, 30, "the relay does not publish")
    with copy_of_the_server(tmp_path) as copy:
        publish_numbers(range(5, 5 + LOST))
        wait_until(lambda: published_rows().count() == 5 + LOST, 30, "the relay does not publish")
        before = ids()

        on_server(copy, lambda: publish_numbers(range(1000, 1000 + LOST)))
        after = on_server(copy, ids)
        assert len(before & after) > 5
        pooler.point_at(copy)

        def is_everything_published() -> bool:
            return bool(on_server(copy, lambda: not unpublished_rows().exists()))

        wait_until(is_everything_published, 60, "the rows of the copy are not published", 0.5)
        stop_relay()
        sent = list(dict.fromkeys(numbers(read_to_end(NUMBERS))))
        assert sent == [*range(5 + LOST), *range(1000, 1000 + LOST)]
        assert not on_server(copy, Alert.objects.filter(ended_at=None).exclude(rule="outbox-sequence").exists)
