"""The relay: publishes the outbox to Kafka, in order per key, and moves its position only after the acknowledgement.

Why nothing is lost: a row counts as sent only after the broker acknowledged it, it was dead-lettered, or it was entered
in the list of held messages. An id that was not visible stays a gap, which every read looks at again, until the settled
mark has passed it and one more read has found nothing there. Another relay starts at what the lease rows say.

Why the order holds: a read returns, in id order and from one snapshot, every unsent row up to its last one. So a row is
sent after each row of its key that was committed before the row's own transaction took its id. A row that becomes
visible later with a lower id belongs to a change that ran at the same time: these have no order. The producer of the
topic keeps the order, also around a row that the broker refuses. A second relay, or one that hung and resumes, only
adds later copies of the same ids.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from django.conf import settings
from django.db import transaction

from common.processes.lifecycle import StopFlag, drop_connection, first_line
from common.processes.outages import is_transient

from .. import metrics
from ..client import KafkaException
from ..consuming.dead_letters import RELAY, write_dead_letters
from ..models import HeldMessage
from ..outbox.published import anything_unpublished
from ..outbox.settled_mark import SettledMark
from ..registry import Rejected, broker_rejected, prefixed
from ..routes import topics_of
from .held_messages import HeldMessages, HeldRow
from .id_assignment import IdWatch, SettledMarkAlert
from .leases import Leases
from .positions import LeaseLost, Positions
from .publisher import OutboxRecord, Publisher, TopicBatch
from .reading import BATCH_BYTES, UnsentRows, read_unsent
from .topic_problems import TopicAlerts, TopicProblem, silence
from .unsent_ids import UnsentIds
from .wake_listener import WakeListener

logger = logging.getLogger(__name__)

BATCH_SIZE = 2000
_BUSY_PAUSE = 0.002
_IDLE_PAUSE = 0.25
_FAULT_PAUSE = 1.0
_IDLE_BEFORE_EXIT = 1.0

# A topic that acknowledges nothing for so long, while others do, is held: then it delays no other topic.
_PATIENCE_BESIDE_OTHERS = 1.0
# As long for a topic that is alone in its batch. Then the brokers are asked for the reason.
_PATIENCE = 2.0
# How long a stopping relay waits for acknowledgements.
_STOP_GRACE = 5.0
# How often held rows are looked at, and holds of operators take effect.
_HELD_SECONDS = 1.0
_ASK_AGAIN_SECONDS = 5.0


class _PausedDuringWait(Exception):
    """An operator paused the relay while no broker answered: what its producers have must not be sent."""


@dataclass(slots=True)
class _HeldBatch:
    """A batch of held rows in flight; how many of its acknowledged and refused rows have left the list."""

    batch: TopicBatch
    acked: int = 0
    refused: int = 0
    # When to ask the brokers why the rest is not acknowledged.
    asks_at: float = field(default_factory=lambda: time.monotonic() + _PATIENCE)


class Relay:
    """Publishes the rows of the shards it holds the lease of. One relay is one thread."""

    def __init__(
        self,
        *,
        batch_size: int = BATCH_SIZE,
        tick: Callable[[], None] = lambda: None,
        is_paused: Callable[[], bool] = lambda: False,
    ) -> None:
        """``tick`` is called in every pass and while waiting for the broker, see ``heartbeat``.

        While ``is_paused`` nothing is published, and the leases stay.
        """
        self._batch_size = batch_size
        self._tick = tick
        self._is_paused = is_paused
        self._publisher = Publisher(on_wait=self._keep_alive)
        self._topic_alerts = TopicAlerts()
        self._leases = Leases()
        self._claims = 0
        self._positions = Positions(self._leases.owner)
        self._settled_mark = SettledMark()
        self._settled_mark_alert = SettledMarkAlert()
        self._id_watch = IdWatch()
        self._held = HeldMessages()
        # Batches of held rows that were handed to a producer and are not acknowledged.
        self._in_flight: dict[str, _HeldBatch] = {}
        self._next_held_at = 0.0
        # What follows on the rows of the last pass, read while those were on their way.
        self._ahead: UnsentRows | None = None
        self._known_topics: set[str] = set()
        self._wake_listener = WakeListener()

    def run(self, stop: StopFlag, *, until_idle: bool = False) -> None:
        """Publish until ``stop`` or, with ``until_idle``, until the outbox had no unpublished row for 1 s.

        With ``until_idle`` a paused relay ends too: its rows wait for the next run.
        """
        self._publisher.prepare(topics_of(settings.KAFKA_ROUTES))
        pause = _BUSY_PAUSE
        idle_since = time.monotonic()
        try:
            while not stop:
                try:
                    published = self.relay_batch(stop)
                except _PausedDuringWait:
                    logger.warning("relay: paused while no broker answered; what waited is sent again when resumed")
                    self._forget_all()
                    continue
                except Exception as error:
                    self._recover(error)
                    stop.wait(_FAULT_PAUSE)
                    idle_since = time.monotonic()
                    continue
                if published:
                    pause = _BUSY_PAUSE
                    idle_since = time.monotonic()
                    continue
                if until_idle and time.monotonic() - idle_since >= _IDLE_BEFORE_EXIT:
                    if self._is_paused():
                        logger.warning("relay: ends without publishing, an operator has paused it")
                        break
                    if not anything_unpublished():
                        break
                if self._wake_listener.wait(pause, stop):
                    self._next_held_at = 0.0
                pause = min(pause * 2, _IDLE_PAUSE)
        finally:
            self.close()

    def close(self) -> None:
        """Save the positions, purge unacknowledged messages and release the shards."""
        try:
            self._positions.save()
        except Exception as error:
            logger.warning("position not saved, the last rows are sent again: %s", first_line(error))
        self._publisher.discard()
        self._leases.release()
        self._wake_listener.close()

    def relay_batch(self, stop: StopFlag) -> int:
        """One pass: read, send, wait for the acknowledgements, advance. Returns the number of rows read."""
        self._tick()
        if self._leases.is_renewal_due:
            # Another relay may be given some of the shards now: it must not start at an old position.
            self._positions.save()
        shards = self._leases.held()
        if not self._positions.is_of(shards) or self._claims != self._leases.claims:
            self._start_with(shards)
        if not shards:
            return 0
        if self._is_paused():
            self._discard_in_flight()
            self._ahead = None
            self._watch_ids()
            return 0
        started_at = time.monotonic()
        sent = self._send_held(shards, stop) if time.monotonic() >= self._next_held_at else 0
        unsent = self._positions.unsent
        read, self._ahead = self._ahead or self._read(shards, unsent), None
        batches, held = self._hand_over(self._positions.only_unsent(read.rows))
        if len(read.ids) == self._batch_size:
            self._ahead = self._read(shards, unsent.without(read.ids))
        held += self._wait_and_hold(batches, stop)
        refused = [item for batch in batches for item in batch.refused]
        with _transaction_if(bool(held or refused)):
            self._write_dead_letters(refused)
            self._held.enter(held)
            self._positions.advance(read.ids, settled=read.settled, complete_through=read.complete_through)
            if held or refused or self._positions.is_save_due:
                self._positions.save()
        self._topic_alerts.end([prefixed(batch.topic) for batch in batches if batch.is_done])
        self._watch_ids()
        if not read.ids:
            blocked = self._held.blocked_topics | self._held.held_topics.keys()
            self._topic_alerts.end_all(but={prefixed(topic) for topic in blocked})
            self._topic_alerts.end_left_over()
            return sent
        metrics.PUBLISHED.inc(sum(len(batch.acked) for batch in batches))
        metrics.RELAY_SECONDS.observe(time.monotonic() - started_at)
        return sent + len(read.ids)

    def _start_with(self, shards: Sequence[int]) -> None:
        """Read from the database what is known of ``shards``."""
        self._discard_in_flight()
        self._ahead = None
        self._settled_mark.reset()
        self._positions.load(shards)
        self._claims = self._leases.claims
        self._id_watch = IdWatch()
        self._id_watch.look(self._positions)
        self._held.load(shards)

    def _discard_in_flight(self) -> None:
        """Take held rows back from their producers, which would send them whenever their topic accepts messages."""
        for topic in self._in_flight:
            self._publisher.discard(topic)
        self._in_flight.clear()

    def _watch_ids(self) -> None:
        """Learn the settled mark for the next pass; alert if it stands, or if ids are assigned below the position."""
        if self._settled_mark.observe_when_due():
            self._id_watch.look(self._positions)
            self._settled_mark_alert.judge(self._settled_mark)

    def _read(self, shards: Sequence[int], unsent: UnsentIds) -> UnsentRows:
        return read_unsent(
            unsent,
            shards,
            holds_all=self._leases.holds_all,
            limit=self._batch_size,
            settled=self._settled_mark.value,
        )

    def _hand_over(self, rows: Sequence[OutboxRecord]) -> tuple[list[TopicBatch], list[HeldRow]]:
        """Hand ``rows`` to the producers of their topics; returns the batches, and the rows that are held instead."""
        held: list[HeldRow] = []
        by_topic: dict[str, list[OutboxRecord]] = {}
        holds_nothing = self._held.holds_nothing
        for row in rows:
            if not holds_nothing and (reason := self._held.reason_to_hold(row)):
                held.append((row, reason, ""))
            elif row.topic in self._in_flight:
                # Rows to be sent again are in flight: the topic does not acknowledge them.
                held.append((row, HeldMessage.Reason.TOPIC, ""))
            else:
                by_topic.setdefault(row.topic, []).append(row)
        for topic in by_topic.keys() - self._known_topics:
            problem = self._publisher.find_problem(topic)
            if problem is None:
                self._known_topics.add(topic)
            elif problem.of_cluster:
                break
            else:
                held += self._hold(by_topic.pop(topic), problem)
        return [self._publisher.begin(topic, of_topic) for topic, of_topic in by_topic.items()], held

    def _wait_and_hold(self, batches: Sequence[TopicBatch], stop: StopFlag) -> list[HeldRow]:
        """Wait until ``batches`` have ended or are given up; returns their rows that are held."""
        held: list[HeldRow] = []
        self._wait(batches, stop)
        for batch in batches:
            if batch.is_done:
                continue
            if batch.problem is not None:
                held += self._hold(batch.remaining(), batch.problem)
            else:
                self._in_flight[batch.topic] = _HeldBatch(batch, len(batch.acked), len(batch.refused))
                held += [(row, HeldMessage.Reason.TOPIC, "not acknowledged yet") for row in batch.remaining()]
        return held

    def _hold(self, rows: Sequence[OutboxRecord], problem: TopicProblem) -> list[HeldRow]:
        self._topic_alerts.open(problem)
        self._known_topics.discard(rows[0].topic)
        return [(row, HeldMessage.Reason.TOPIC, str(problem)) for row in rows]

    def _wait(self, batches: Sequence[TopicBatch], stop: StopFlag) -> None:
        """Wait until every batch has ended, or is silent while other topics or the brokers answer.

        If no broker answers it waits on: then no topic is held, and all rows stay where they are.
        """
        self._publisher.wait(batches, _PATIENCE_BESIDE_OTHERS)
        gives_up_at: float | None = None
        while not all(batch.has_ended for batch in batches) and not any(batch.is_done for batch in batches):
            acked = _number_acked(batches)
            self._publisher.wait(batches, _PATIENCE)
            if _number_acked(batches) > acked:
                continue
            if self._is_paused():
                raise _PausedDuringWait
            silent = [batch for batch in batches if not batch.has_ended]
            problem = self._publisher.find_problem(silent[0].topic) if silent else None
            if problem is None or not problem.of_cluster:
                return
            for batch in silent:
                self._topic_alerts.open(problem._replace(topic=prefixed(batch.topic)))
            if stop:
                gives_up_at = gives_up_at or time.monotonic() + _STOP_GRACE
                if time.monotonic() >= gives_up_at:
                    return

    def _send_held(self, shards: Sequence[int], stop: StopFlag) -> int:
        """Send what is held and may be sent; returns the number of rows that left the list."""
        self._next_held_at = time.monotonic() + _HELD_SECONDS
        topics = self._held.load(shards)
        for topic, reason in self._held.held_topics.items():
            remedy = "release it when its messages may be sent"
            self._topic_alerts.open(TopicProblem(prefixed(topic), f"is held by an operator ({reason})", remedy))
        freed = 0
        for topic in topics:
            if topic not in self._held.held_topics and not stop:
                self._keep_alive()
                freed += self._send_held_of(topic)
        if freed:
            self._held.load(shards)
            self._next_held_at = 0.0
        return freed

    def _send_held_of(self, topic: str) -> int:
        sending = self._in_flight.pop(topic, None)
        if sending is None:
            if (problem := self._publisher.find_problem(topic)) is not None:
                self._note_problem(topic, problem)
                return 0
            rows = self._held.read(topic, limit=self._batch_size, max_bytes=BATCH_BYTES)
            if not rows:
                return 0
            sending = _HeldBatch(self._publisher.begin(topic, rows))
            self._publisher.wait([sending.batch], _PATIENCE_BESIDE_OTHERS)
        else:
            self._publisher.wait([sending.batch], 0.0)
        return self._free(sending)

    def _free(self, sending: _HeldBatch) -> int:
        """Take the rows of a held batch that are settled from the list; returns their number."""
        batch = sending.batch
        acked, refused = batch.acked[sending.acked :], batch.refused[sending.refused :]
        with _transaction_if(bool(refused)):
            self._write_dead_letters(refused)
            self._held.remove([row.id for row in acked] + [row.id for row, _ in refused])
        metrics.PUBLISHED.inc(len(acked))
        sending.acked, sending.refused = len(batch.acked), len(batch.refused)
        if batch.is_done:
            self._topic_alerts.end([prefixed(batch.topic)])
        elif batch.problem is not None:
            self._note_problem(batch.topic, batch.problem)
        else:
            self._in_flight[batch.topic] = sending
            if time.monotonic() >= sending.asks_at:
                sending.asks_at = time.monotonic() + _ASK_AGAIN_SECONDS
                problem = self._publisher.find_problem(batch.topic)
                self._note_problem(batch.topic, problem or silence(prefixed(batch.topic), len(batch.remaining())))
        return len(acked) + len(refused)

    def _note_problem(self, topic: str, problem: TopicProblem) -> None:
        self._held.note_attempt(topic, str(problem))
        self._topic_alerts.open(problem)
        if problem.is_missing and topic in self._in_flight:
            # Nothing of it can be in doubt, and a new producer finds the topic at once when it is back.
            self._publisher.discard(topic)
            del self._in_flight[topic]

    def _write_dead_letters(self, refused: Sequence[tuple[OutboxRecord, KafkaException]]) -> None:
        """Write a dead letter for each row that the broker refuses for good; its key goes on after it."""
        for row, error in refused:
            rejected = [Rejected(row.message(), error)]
            # A dead letter that its own topic refuses is not published there again.
            is_event = row.headers is None
            write_dead_letters(RELAY, RELAY, rejected, publish=is_event)
            if is_event:
                broker_rejected(row.event_type, rejected)

    def _keep_alive(self) -> None:
        self._tick()
        self._leases.extend()

    def _recover(self, error: Exception) -> None:
        """Drop producers, positions and connection: nothing is sent before everything is read again."""
        if is_transient(error) or isinstance(error, KafkaException | LeaseLost):
            logger.warning("relay: %s: %s; trying again", type(error).__name__, first_line(error))
        else:
            logger.error("relay: unexpected error; trying again", exc_info=error)
        self._forget_all()
        drop_connection()

    def _forget_all(self) -> None:
        self._publisher.discard()
        self._in_flight.clear()
        self._ahead = None
        self._positions.forget()
        self._leases.forget()


def _transaction_if(is_needed: bool) -> AbstractContextManager[object]:
    return transaction.atomic() if is_needed else nullcontext()


def _number_acked(batches: Sequence[TopicBatch]) -> int:
    return sum(len(batch.acked) for batch in batches)
