"""A bulk issue from its file to its results. It may be ended anywhere, by whatever means, and run again."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import TypeVar
from uuid import UUID

from common.processes.lifecycle import StopFlag, drop_connection, first_line
from common.processes.outages import is_transient
from kafka_bridge.outbox.backpressure import OutboxBackpressure

from ..issuance.accept_bulk import BulkIssue, bulk_accept
from ..selectors import request_outcomes
from .input_file import Line
from .progress import Report
from .results_file import INVALID, ResultsFile, Row

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

_LINES_AT_ONCE = 1000
_FAULT_PAUSE = 1.0
_PRESSURE_SECONDS = 1.0
_SHORTEST_LOOK, _LONGEST_LOOK = 0.1, 1.0
_PATIENCE_SECONDS = 30.0
_BAD_LINES_TOLD = 20


class Interrupted(Exception):
    """The process was asked to end."""


class BatchRun:
    """Accepts the requests of a batch, then writes down how they ended.

    It keeps no state of its own: what has been done is told by the ids in the outbox and among the results. A database
    that is away is waited for.
    """

    def __init__(self, batch: BulkIssue, *, stop: StopFlag, tick: Callable[[], None] = lambda: None) -> None:
        """``tick`` is called again and again while the run is alive: see ``heartbeat``."""
        self._batch = batch
        self._stop = stop
        self._tick = tick
        # Half of the room: a batch alone must not shut the door to users.
        self._pressure = OutboxBackpressure(share=0.5, told_as="the batch waits")
        self._sampled_at: float | None = None
        self.lines_done = 0
        self.accepted = 0
        self.repeated = 0
        self.invalid = 0
        self.outcomes: Counter[str] = Counter()

    def accept(self, lines: Iterable[Line], report: Report) -> None:
        """Accept a request per user. Raises Stopped, and what ``bulk_accept`` refuses with."""
        for chunk in _chunks(lines):
            user_ids = [line.user_id for line in chunk if line.user_id is not None]
            self._tell_bad(chunk)
            self._wait_for_room()
            new = self._insist(partial(bulk_accept, batch=self._batch, user_ids=user_ids))
            self.accepted += new
            self.repeated += len(user_ids) - new
            self.lines_done = chunk[-1].number - 1
            report(self.lines_done)

    def write_results(self, lines: Iterable[Line], results: ResultsFile, report: Report) -> None:
        """Wait until the requests have ended and write a row per line, in the order of the lines. Raises Stopped."""
        for chunk in _chunks(lines):
            ids = [None if line.user_id is None else self._batch.request_id(line.user_id) for line in chunk]
            outcomes = self._wait_for({request_id for request_id in ids if request_id is not None})
            rows = [_row(line, request_id, outcomes) for line, request_id in zip(chunk, ids, strict=True)]
            results.write(rows)
            self.outcomes.update(row.status if row.status == INVALID else row.reason or row.status for row in rows)
            report(chunk[-1].number - 1)

    def _tell_bad(self, lines: Sequence[Line]) -> None:
        for line in lines:
            if line.user_id is not None:
                continue
            self.invalid += 1
            if self.invalid <= _BAD_LINES_TOLD:
                logger.warning("%s: %r", _complaint(line), line.text)
            elif self.invalid == _BAD_LINES_TOLD + 1:
                logger.warning("there are more such lines; the results name all of them")

    def _wait_for_room(self) -> None:
        while True:
            if self._sampled_at is None or time.monotonic() - self._sampled_at >= _PRESSURE_SECONDS:
                self._insist(self._pressure.sample)
                self._sampled_at = time.monotonic()
            if not self._pressure.refusal():
                return
            self._pause(_PRESSURE_SECONDS)

    def _wait_for(self, request_ids: set[UUID]) -> dict[UUID, tuple[str, str | None]]:
        found: dict[UUID, tuple[str, str | None]] = {}
        look, told_at = _SHORTEST_LOOK, time.monotonic()
        while True:
            waiting = request_ids - found.keys()
            new = self._insist(partial(request_outcomes, waiting))
            found |= new
            if len(found) == len(request_ids):
                return found
            if new:
                look, told_at = _SHORTEST_LOOK, time.monotonic()
            elif time.monotonic() - told_at >= _PATIENCE_SECONDS:
                told_at = time.monotonic()
                logger.warning("%d requests wait for their results: are relay and issuer running?", len(waiting))
            self._pause(look)
            look = min(2 * look, _LONGEST_LOOK)

    def _insist(self, step: Callable[[], Result]) -> Result:
        """What ``step`` returns, however long the database is away. Raises Stopped before a step, never within."""
        while True:
            self._pause(0.0)
            try:
                return step()
            except Exception as error:
                if not is_transient(error):
                    raise
                logger.warning("the batch waits: %s", first_line(error))
                drop_connection()
                self._pause(_FAULT_PAUSE)

    def _pause(self, seconds: float) -> None:
        self._tick()
        if self._stop.wait(seconds):
            raise Interrupted


def _chunks(lines: Iterable[Line]) -> Iterator[list[Line]]:
    rest = iter(lines)
    while chunk := list(islice(rest, _LINES_AT_ONCE)):
        yield chunk


def _complaint(line: Line) -> str:
    return f"line {line.number} is not a positive 64-bit integer"


def _row(line: Line, request_id: UUID | None, outcomes: dict[UUID, tuple[str, str | None]]) -> Row:
    if line.user_id is None or request_id is None:
        return Row(line.text, None, INVALID, _complaint(line))
    return Row(line.user_id, request_id, *outcomes[request_id])
