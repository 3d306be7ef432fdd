"""What the page of a redrive shows: its state in words, what an operator may do next, its preview and its results."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, NamedTuple, TypeVar

import msgspec

from common.postgres.clock import database_time
from kafka_bridge.models import MOST_RATE, Redrive
from kafka_bridge.redriving.redrives import ENDED, PREVIEW_VALID, STOPPED_BY, TYPED_ABOVE, results_of
from kafka_bridge.redriving.replay import ReplayResult

_MOST_EXAMPLES = 5
# A process renews its lease more often, and looks for new work within seconds.
_UNATTENDED_AFTER = timedelta(seconds=10)
_CLOSED = frozenset({ReplayResult.APPLIED, ReplayResult.DONE_ALREADY})

_State = Redrive.State
_LOOKS = {
    _State.PREPARING: "is-quiet",
    _State.PREVIEWED: "is-warning",
    _State.RUNNING: "is-ok",
    _State.PAUSED: "is-warning",
    _State.DONE: "is-quiet",
    _State.CANCELLED: "is-quiet",
}
# What the state allows, see ``kafka_bridge.redriving.redrives``.
_ACTIONS: dict[str, frozenset[str]] = {
    _State.PREPARING: frozenset({"preview", "rate", "cancel"}),
    _State.PREVIEWED: frozenset({"start", "preview", "rate", "cancel"}),
    _State.RUNNING: frozenset({"pause", "rate", "cancel"}),
    _State.PAUSED: frozenset({"resume", "preview", "rate", "cancel"}),
}
_WORDS = {
    "applied": "applied",
    "done_already": "done already",
    "failed": "still fail",
    "quarantined": "quarantined",
    "unreplayable": "cannot be replayed",
    "not_previewed": "not previewed",
}


_T = TypeVar("_T")


class _Preview(msgspec.Struct, frozen=True):
    """What the page shows of a ``kafka_bridge.redriving.preview.Preview``."""

    counts: dict[str, int]
    kinds: dict[str, int]
    examples: dict[str, list[tuple[int, str]]]
    notes: list[str]


class ResultLine(NamedTuple):
    """Letters with one result: how many, and examples as (letter, detail)."""

    words: str
    number: int
    examples: list[tuple[int, str]]


class Progress(NamedTuple):
    """Letters of a redrive: those replayed, those of them that are closed now, and those that stay open.

    ``fault`` says why an error has stopped it or its row cannot be read; empty: neither.
    """

    redrive: Redrive
    replayed: int
    closed: int
    fault: str
    counts: dict[str, int]

    @property
    def failed(self) -> int:
        """Letters that were replayed and are open."""
        return self.replayed - self.closed

    @property
    def not_replayed(self) -> int:
        """Letters that were not replayed yet, or at all if the redrive has ended."""
        return self.redrive.total - self.replayed

    @property
    def state(self) -> str:
        """The state in words: an end with open letters is told from one without."""
        state = str(self.redrive.state)
        return f"{state}, {self.failed} still fail" if self.redrive.state == _State.DONE and self.failed else state

    @property
    def look(self) -> str:
        """The state's class in ops.css."""
        if self.fault or (self.redrive.state == _State.DONE and self.failed):
            return "is-critical"
        return _LOOKS[_State(self.redrive.state)]


def progress_of(redrive: Redrive) -> Progress:
    """Return the progress of a redrive, from its counts. A row that cannot be read has no letters and a fault."""
    faults = [redrive.waits_for] if redrive.state == _State.PAUSED and redrive.waits_for.startswith(STOPPED_BY) else []
    if redrive.state not in _LOOKS:
        faults.append(f"there is no state {redrive.state!r}")
    try:
        counts = results_of(redrive.counts)
    except ValueError as error:
        counts = {}
        faults.append(str(error))
    closed = sum(number for result, number in counts.items() if result in _CLOSED)
    return Progress(redrive, sum(counts.values()), closed, "; ".join(faults), counts)


def redrive_state(redrive: Redrive) -> dict[str, Any]:
    """Return what the templates of the page of a redrive show. Makes four queries, and one for each kind of result."""
    now = database_time()
    age = None if redrive.previewed_at is None else now - redrive.previewed_at
    has_ended = redrive.state in ENDED
    # What something else than this service wrote is left out, and named.
    unread: list[str] = []
    preview = None if redrive.preview is None else _read("preview", redrive.preview, _Preview, unread)
    progress = progress_of(redrive)
    return {
        "redrive": redrive,
        "progress": progress,
        "unread": unread,
        "selection": list((_read("selection", redrive.selection, dict[str, str | int], unread) or {}).items()),
        "histogram": _read("histogram", redrive.histogram, list[tuple[str, int]], unread) or [],
        "actions": _ACTIONS.get(redrive.state, frozenset()),
        "is_unattended": not has_ended and _is_unattended(redrive, now),
        "results": [
            ResultLine(_WORDS.get(result, result), number, _examples(redrive, result))
            for result, number in sorted(progress.counts.items())
        ],
        "waiting": _postponed(redrive),
        "preview": preview and _preview_lines(preview),
        "preview_notes": preview.notes if preview else [],
        "preview_age": age,
        "is_old": age is not None and age > PREVIEW_VALID,
        "needs_count": redrive.total > TYPED_ABOVE,
        "has_ended": has_ended,
        "most_rate": MOST_RATE,
    }


def _read(name: str, value: object, kind: type[_T], unread: list[str]) -> _T | None:
    """Return a JSON column as ``kind``; None if it is anything else, with its name in ``unread``."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError:
        unread.append(name)
        return None


def _is_unattended(redrive: Redrive, now: datetime) -> bool:
    """Whether it has work for a process, and none has had its lease for a while."""
    has_work = redrive.state == _State.RUNNING or redrive.wants_preview
    last = max(moment for moment in (redrive.created_at, redrive.started_at, redrive.leased_until) if moment)
    return has_work and now - last > _UNATTENDED_AFTER


def _examples(redrive: Redrive, result: str) -> list[tuple[int, str]]:
    rows = redrive.items.filter(result=result).order_by("id").values_list("letter_id", "detail")
    return list(rows[:_MOST_EXAMPLES])


def _postponed(redrive: Redrive) -> list[tuple[int, str, datetime]]:
    """Return letters that were tried and are tried again, the next first: (letter, why, when)."""
    if redrive.started_at is None or redrive.state in ENDED:
        return []
    # The others are due since the redrive was created.
    rows = redrive.items.filter(done_at=None, due_at__gt=redrive.started_at).order_by("due_at", "id")
    return list(rows.values_list("letter_id", "detail", "due_at")[:_MOST_EXAMPLES])


def _preview_lines(preview: _Preview) -> list[ResultLine]:
    kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(preview.kinds.items()))
    words = {**_WORDS, "applied": f"would be applied: {kinds}", "done_already": "are done already"}
    return [
        ResultLine(words.get(result, result), number, preview.examples.get(result, []))
        for result, number in sorted(preview.counts.items())
    ]
