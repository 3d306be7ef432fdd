"""What the page of a redrive shows: its state in words, what an operator may do next, its preview and its results."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, NamedTuple

from common.postgres.clock import database_time
from kafka_bridge.models import Redrive
from kafka_bridge.redriving.redrives import ENDED, MOST_RATE, PREVIEW_VALID, TYPED_ABOVE
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


class ResultLine(NamedTuple):
    """Letters with one result: how many, and examples as (letter, detail)."""

    words: str
    number: int
    examples: list[tuple[int, str]]


class Progress(NamedTuple):
    """Letters of a redrive: those replayed, those of them that are closed now, and those that stay open."""

    redrive: Redrive
    replayed: int
    closed: int

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
        if self.redrive.state == _State.DONE and self.failed:
            return "is-critical"
        return _LOOKS[_State(self.redrive.state)]


def progress_of(redrive: Redrive) -> Progress:
    """Return the progress of a redrive, from its counts."""
    closed = sum(number for result, number in redrive.counts.items() if result in _CLOSED)
    return Progress(redrive, sum(redrive.counts.values()), closed)


def redrive_state(redrive: Redrive) -> dict[str, Any]:
    """Return what the templates of the page of a redrive show. Makes four queries, and one for each kind of result."""
    now = database_time()
    age = None if redrive.previewed_at is None else now - redrive.previewed_at
    has_ended = redrive.state in ENDED
    return {
        "redrive": redrive,
        "progress": progress_of(redrive),
        "actions": _ACTIONS.get(redrive.state, frozenset()),
        "is_unattended": not has_ended and _is_unattended(redrive, now),
        "results": [
            ResultLine(_WORDS.get(result, result), number, _examples(redrive, result))
            for result, number in sorted(redrive.counts.items())
        ],
        "waiting": _postponed(redrive),
        "preview": redrive.preview and _preview_lines(redrive.preview),
        "preview_age": age,
        "is_old": age is not None and age > PREVIEW_VALID,
        "needs_count": redrive.total > TYPED_ABOVE,
        "has_ended": has_ended,
        "most_rate": MOST_RATE,
    }


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


def _preview_lines(preview: dict[str, Any]) -> list[ResultLine]:
    kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(preview["kinds"].items()))
    words = {**_WORDS, "applied": f"would be applied: {kinds}", "done_already": "are done already"}
    return [
        ResultLine(words.get(result, result), number, [(item[0], item[1]) for item in preview["examples"][result]])
        for result, number in sorted(preview["counts"].items())
    ]
