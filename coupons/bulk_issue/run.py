"""A run of a bulk issue, from the input file to the results. It may be interrupted anywhere and run again."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TypeVar
from uuid import UUID

from common.chunks import chunks
from common.processes.lifecycle import StopFlag, drop_connection, first_line
from common.processes.outages import is_transient
from kafka_bridge.outbox.backpressure import OutboxBackpressure

from ..issuance.accept_bulk import BulkIssue, bulk_accept
from ..selectors import request_outcomes
from .input_file import Line
from .progress import Report
from .results_file import INVALID, ResultsFile, Row

logger = logging.getLogger(__name__)

T = TypeVar("T")

_CHUNK = 1000
_RETRY_SECONDS = 1.0
_SAMPLE_SECONDS = 1.0
_MIN_POLL_SECONDS, _MAX_POLL_SECONDS = 0.1, 1.0
_WARN_SECONDS = 30.0
_MAX_LINES_LOGGED = 20


class Interrupted(Exception):
    """The process was asked to stop."""


class BatchRun:
    """Accepts the requests of a batch, then writes their results.

    It keeps no state of its own: the request ids in the outbox and in ``coupons_issuerequest`` show what has been done.
    While the database is away it waits and tries again.
    """

    def __init__(self, batch: BulkIssue, *, stop: StopFlag, tick: Callable[[], None] = lambda: None) -> None:
        """``tick`` is called at every step and while waiting, for the heartbeat."""
        self._batch = batch
        self._stop = stop
        self._tick = tick
        # Half of the limit: a batch alone must not close the accept API to users.
        self._backpressure = OutboxBackpressure(share=0.5, consequence="the batch waits")
        self._sampled_at: float | None = None
        self.lines_done = 0
        self.accepted = 0
        self.repeated = 0
        self.invalid = 0
        self.outcomes: Counter[str] = Counter()

    def accept(self, lines: Iterable[Line], report: Report) -> None:
        """Accept a request per user. Raises Interrupted, and NotFound or CouponNotOpen from ``bulk_accept``."""
        for chunk in chunks(lines, _CHUNK):
            user_ids = [line.user_id for line in chunk if line.user_id is not None]
            self._log_invalid(chunk)
            self._wait_for_backpressure()
            new = self._retry(partial(bulk_accept, batch=self._batch, user_ids=user_ids))
            self.accepted += new
            self.repeated += len(user_ids) - new
            self.lines_done = chunk[-1].number - 1
            report(self.lines_done)

    def write_results(self, lines: Iterable[Line], results: ResultsFile, report: Report) -> None:
        """Wait for the results and write a row per line, in the order of the lines. Raises Interrupted."""
        for chunk in chunks(lines, _CHUNK):
            ids = [None if line.user_id is None else self._batch.request_id(line.user_id) for line in chunk]
            outcomes = self._wait_for_results({request_id for request_id in ids if request_id is not None})
            rows = [_row(line, request_id, outcomes) for line, request_id in zip(chunk, ids, strict=True)]
            results.write(rows)
            self.outcomes.update(row.status if row.status == INVALID else row.reason or row.status for row in rows)
            report(chunk[-1].number - 1)

    def _log_invalid(self, lines: Sequence[Line]) -> None:
        for line in lines:
            if line.user_id is not None:
                continue
            self.invalid += 1
            if self.invalid <= _MAX_LINES_LOGGED:
                logger.warning("%s: %r", _invalid_reason(line), line.text)
            elif self.invalid == _MAX_LINES_LOGGED + 1:
                logger.warning("more invalid lines follow; the results contain all of them")

    def _wait_for_backpressure(self) -> None:
        while True:
            if self._sampled_at is None or time.monotonic() - self._sampled_at >= _SAMPLE_SECONDS:
                self._retry(self._backpressure.sample)
                self._sampled_at = time.monotonic()
            if not self._backpressure.refusal():
                return
            self._pause(_SAMPLE_SECONDS)

    def _wait_for_results(self, request_ids: set[UUID]) -> dict[UUID, tuple[str, str | None]]:
        found: dict[UUID, tuple[str, str | None]] = {}
        poll_seconds, warned_at = _MIN_POLL_SECONDS, time.monotonic()
        while True:
            undecided = request_ids - found.keys()
            new = self._retry(partial(request_outcomes, undecided))
            found |= new
            if len(found) == len(request_ids):
                return found
            if new:
                poll_seconds, warned_at = _MIN_POLL_SECONDS, time.monotonic()
            elif time.monotonic() - warned_at >= _WARN_SECONDS:
                warned_at = time.monotonic()
                logger.warning("%d requests wait for their results: are relay and issuer running?", len(undecided))
            self._pause(poll_seconds)
            poll_seconds = min(2 * poll_seconds, _MAX_POLL_SECONDS)

    def _retry(self, step: Callable[[], T]) -> T:
        """Return what ``step`` returns; while the database is away, retry. Raises Interrupted between steps only."""
        while True:
            self._pause(0.0)
            try:
                return step()
            except Exception as error:
                if not is_transient(error):
                    raise
                logger.warning("the batch waits: %s", first_line(error))
                drop_connection()
                self._pause(_RETRY_SECONDS)

    def _pause(self, seconds: float) -> None:
        self._tick()
        if self._stop.wait(seconds):
            raise Interrupted


def _invalid_reason(line: Line) -> str:
    return f"line {line.number} is not a positive 64-bit integer"


def _row(line: Line, request_id: UUID | None, outcomes: dict[UUID, tuple[str, str | None]]) -> Row:
    if line.user_id is None or request_id is None:
        return Row(line.text, None, INVALID, _invalid_reason(line))
    return Row(line.user_id, request_id, *outcomes[request_id])
