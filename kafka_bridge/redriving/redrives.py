"""What operators do with redrives: create, start, set the rate, pause, resume, cancel. Each is audited."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import Annotated, Any

import msgspec
from django.db import transaction
from django.db.models.functions import Now

from common.bigint import MAX_BIGINT
from common.postgres.clock import database_time

from ..errors import BridgeError
from ..models import MOST_RATE, Redrive
from ..operating.audit import record_action
from .letter_filter import LetterFilter, TooManyLetters, error_classes, freeze_matching, freeze_selected

REDRIVE_PERMISSION = "kafka_bridge.redrive_dead_letters"
DEFAULT_RATE = 50
# An older preview is made again before the start.
PREVIEW_VALID = timedelta(seconds=60)
# Above so many letters the operator types their number.
TYPED_ABOVE = 100
# Before an error in ``waits_for``, of a redrive that the executor has paused because of it.
STOPPED_BY = "stopped by an error: "

_State = Redrive.State
ENDED = frozenset({_State.DONE, _State.CANCELLED})


class RedriveRefused(BridgeError):
    """An action that the redrive's state, or its letters, do not allow; the text tells the operator why."""


class NoLetters(RedriveRefused):
    """No open dead letter matches, or none of the selected ones is open."""


def results_of(counts: object) -> dict[str, int]:
    """Return the letters by result from a redrive's ``counts``. Raises ValueError if they are anything else."""
    try:
        return msgspec.convert(counts, dict[str, Annotated[int, msgspec.Meta(ge=0, le=MAX_BIGINT)]])
    except msgspec.ValidationError as error:
        raise ValueError(f"its counts are not numbers by result: {error}") from error


def redrive_create(
    *, name: str, reason: str, actor: str, letters: LetterFilter | Sequence[int], rate: int = DEFAULT_RATE
) -> Redrive:
    """Create a redrive of the open letters that match a filter, or of those among given ids. The set stays as it is.

    Raises RedriveRefused if there is no such letter, or there are too many.
    """
    _check_rate(rate)
    is_filter = isinstance(letters, LetterFilter)
    with transaction.atomic():
        redrive = Redrive.objects.create(
            name=name,
            reason=reason,
            actor=actor,
            rate=rate,
            selection=letters.as_json() if isinstance(letters, LetterFilter) else {"selected": len(set(letters))},
            total=0,
            histogram=[],
        )
        try:
            redrive.total = (
                freeze_matching(redrive.pk, letters)
                if isinstance(letters, LetterFilter)
                else freeze_selected(redrive.pk, letters)
            )
        except TooManyLetters as error:
            raise RedriveRefused(str(error)) from error
        if not redrive.total:
            raise NoLetters(f"no open dead letter {'matches' if is_filter else 'is among the selected ones'}")
        redrive.histogram = error_classes(redrive.pk)
        redrive.save(update_fields=["total", "histogram"])
        after = {"name": name, "letters": redrive.total, "rate": rate, "selection": redrive.selection}
        record_action(actor=actor, action="redrive.create", subject=str(redrive), reason=reason, after=after)
    redrive.refresh_from_db()
    return redrive


def redrive_start(redrive_id: int, *, actor: str, reason: str = "", typed_count: int | None = None) -> Redrive:
    """Start a previewed redrive. With a preview older than a minute another one is made first.

    Then it starts if that preview says the same. Raises RedriveRefused, also if it has more than ``TYPED_ABOVE``
    letters and ``typed_count`` is not their number.
    """
    with transaction.atomic():
        redrive = _locked(redrive_id)
        if redrive.state == _State.PREPARING:
            raise RedriveRefused("there is no preview yet: the housekeeper makes it, or replay_dead_letters")
        _require(redrive, "started", {_State.PREVIEWED})
        if redrive.total > TYPED_ABOVE and typed_count != redrive.total:
            raise RedriveRefused(f"it has {redrive.total} letters: type this number to start it")
        if redrive.previewed_at is not None and database_time() - redrive.previewed_at <= PREVIEW_VALID:
            changes: dict[str, Any] = {"state": _State.RUNNING, "started_at": Now(), "wants_preview": False}
        else:
            changes = {"wants_preview": True, "starts_after_preview": True}
        return _change(redrive, "start", actor, reason, **changes)


def redrive_preview(redrive_id: int, *, actor: str, accepts_delay: bool, reason: str = "") -> Redrive:
    """Have the preview made again; with ``accepts_delay`` also of coupons on sale. Raises RedriveRefused."""
    with transaction.atomic():
        redrive = _locked(redrive_id)
        _require(redrive, "previewed", {_State.PREPARING, _State.PREVIEWED, _State.PAUSED})
        return _change(
            redrive,
            "preview",
            actor,
            reason,
            wants_preview=True,
            starts_after_preview=False,
            accepts_delay=accepts_delay,
        )


def redrive_set_rate(redrive_id: int, *, rate: int, actor: str, reason: str = "") -> Redrive:
    """Set the letters a second, 1 to ``MOST_RATE``. Raises RedriveRefused."""
    _check_rate(rate)
    with transaction.atomic():
        redrive = _locked(redrive_id)
        _require(redrive, "changed", set(_State) - ENDED)
        return _change(redrive, "set_rate", actor, reason, rate=rate)


def redrive_pause(redrive_id: int, *, actor: str, reason: str = "") -> Redrive:
    """Pause a running redrive; the replay in progress ends. Raises RedriveRefused."""
    with transaction.atomic():
        redrive = _locked(redrive_id)
        _require(redrive, "paused", {_State.RUNNING})
        return _change(redrive, "pause", actor, reason, state=_State.PAUSED)


def redrive_resume(redrive_id: int, *, actor: str, reason: str = "") -> Redrive:
    """Resume a paused redrive. Raises RedriveRefused."""
    with transaction.atomic():
        redrive = _locked(redrive_id)
        _require(redrive, "resumed", {_State.PAUSED})
        # What it waited for, or was stopped by, is seen anew.
        changes = {"waits_for": ""} if redrive.waits_for else {}
        return _change(redrive, "resume", actor, reason, state=_State.RUNNING, **changes)


def redrive_cancel(redrive_id: int, *, actor: str, reason: str = "") -> Redrive:
    """Cancel a redrive that has not ended: its other letters stay open. Raises RedriveRefused."""
    with transaction.atomic():
        redrive = _locked(redrive_id)
        _require(redrive, "cancelled", set(_State) - ENDED)
        changes = {"wants_preview": False, "starts_after_preview": False, "ended_at": Now()}
        return _change(redrive, "cancel", actor, reason, state=_State.CANCELLED, **changes)


def _check_rate(rate: int) -> None:
    if not 1 <= rate <= MOST_RATE:
        raise RedriveRefused(f"the rate is a number from 1 to {MOST_RATE} letters a second")


def _locked(redrive_id: int) -> Redrive:
    redrive = Redrive.objects.select_for_update().filter(pk=redrive_id).first()
    if redrive is None:
        raise RedriveRefused(f"there is no redrive {redrive_id}")
    return redrive


def _require(redrive: Redrive, done: str, states: Collection[str]) -> None:
    if redrive.state not in states:
        allowed = " or ".join(sorted(states))
        raise RedriveRefused(f"a redrive that is {redrive.state} cannot be {done}, only one that is {allowed}")


def _change(redrive: Redrive, verb: str, actor: str, reason: str, **values: Any) -> Redrive:
    """Set columns of a locked redrive and record it."""
    shown = [name for name in values if not name.endswith("_at")]
    before = {name: getattr(redrive, name) for name in shown}
    for name, value in values.items():
        setattr(redrive, name, value)
    redrive.save(update_fields=list(values))
    record_action(
        actor=actor,
        action=f"redrive.{verb}",
        subject=str(redrive),
        reason=reason,
        before=before,
        after={name: values[name] for name in shown},
    )
    redrive.refresh_from_db()
    return redrive
