"""Close dead letters without their effect, and release quarantined ones; both for a reason, in the audit trail."""

from __future__ import annotations

from collections.abc import Collection

from django.db import transaction
from django.db.models import QuerySet
from django.db.models.functions import Now

from common.postgres.lock_limits import limit_lock_waits

from ..consuming import inbox
from ..models import MOST_REPLAYS, DeadLetter
from ..operating.audit import record_action
from ..registry import groups
from .stored_messages import letter_message

DISCARD_PERMISSION = "kafka_bridge.discard_dead_letters"
# Each letter is an entry of the audit trail and has its row locked: more at once would be a long transaction.
MOST_AT_ONCE = 500


def discard_letters(letter_ids: Collection[int], *, actor: str, reason: str) -> int:
    """Close those of the letters that are open, without their effect; returns their number.

    The message stays as evidence until its retention. A group with an inbox is recorded to have handled the event, so
    that reading its topic again does not have the effect after all; the other groups know from their own rows what was
    decided. Raises ValueError without a reason or for more than ``MOST_AT_ONCE`` letters, and database errors: if a
    letter is being replayed for long, nothing is discarded.
    """
    reason = _checked(letter_ids, reason)
    with transaction.atomic():
        limit_lock_waits()
        # Of a letter that is leased, the call is being made: it may have its effect at this moment.
        letters = list(_locked(letter_ids).exclude(leased_until__gt=Now()))
        for letter in letters:
            group = groups().get(letter.consumer_group)
            if group is not None and group.inbox:
                inbox.claim(group.name, [letter_message(letter).inbox_id])
            _record(letter, "discard", actor, reason, after={"state": "discarded"})
        DeadLetter.objects.filter(pk__in=[letter.pk for letter in letters]).update(
            closed_at=Now(), outcome=DeadLetter.Outcome.DISCARDED, lease_owner=None, leased_until=None
        )
    return len(letters)


def release_letters(letter_ids: Collection[int], *, actor: str, reason: str) -> int:
    """End the quarantine of those of the letters that are in it, so that they may be replayed; returns their number.

    Raises the same as ``discard_letters``.
    """
    reason = _checked(letter_ids, reason)
    with transaction.atomic():
        limit_lock_waits()
        letters = list(_locked(letter_ids).filter(replays__gte=MOST_REPLAYS))
        for letter in letters:
            _record(letter, "release", actor, reason, after={"state": "open", "replays": 0})
        DeadLetter.objects.filter(pk__in=[letter.pk for letter in letters]).update(replays=0)
    return len(letters)


def _checked(letter_ids: Collection[int], reason: str) -> str:
    if len(letter_ids) > MOST_AT_ONCE:
        raise ValueError(f"at most {MOST_AT_ONCE} dead letters at once, not {len(letter_ids)}")
    if not (reason := reason.strip()):
        raise ValueError("a reason is needed")
    return reason


def _locked(letter_ids: Collection[int]) -> QuerySet[DeadLetter]:
    """Lock the open ones in the order of their ids, so that two operators do not deadlock."""
    rows = DeadLetter.objects.select_for_update(no_key=True).filter(pk__in=letter_ids, closed_at=None)
    return rows.order_by("pk")


def _record(letter: DeadLetter, verb: str, actor: str, reason: str, *, after: dict[str, str | int]) -> None:
    record_action(
        actor=actor,
        action=f"dead_letter.{verb}",
        subject=f"dead letter {letter.pk}",
        reason=reason,
        before={"state": letter.state, "replays": letter.replays, "message": str(letter)},
        after=after,
    )
