"""Preview of a redrive: its letters through the real handlers, in a transaction that is rolled back.

Handlers do everything outside PostgreSQL after the commit, or in their call: a preview has neither.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from django.db import connection, transaction

from common.processes.lifecycle import first_line
from common.processes.outages import is_database_outage, is_over_limit, is_transient
from common.throttling import CallPostponed

from ..consuming.dead_letters import RELAY
from ..models import DeadLetter, RedriveItem
from ..registry import ConsumerGroup, groups
from .replay import ReplayResult, replay_in_transaction
from .stored_messages import letter_message

# Of a larger set so many letters are previewed, evenly spread.
MOST_PREVIEWED = 500
PREVIEW_SECONDS = 2.0
LOCK_SECONDS = 0.2
NOT_PREVIEWED = "not_previewed"
_MOST_EXAMPLES = 5

# Any number that no other advisory lock of this project has.
_LOCK = 7_205_759_403

_SAMPLE = f"""
    SELECT letter_id FROM (
        SELECT letter_id, row_number() OVER (ORDER BY id) AS number, count(*) OVER () AS total
        FROM {RedriveItem._meta.db_table} WHERE redrive_id = %(redrive)s AND done_at IS NULL
    ) AS item
    WHERE total <= %(most)s OR number * %(most)s %% total < %(most)s
    ORDER BY letter_id
"""


class PreviewBusy(Exception):
    """Another preview is being made."""


class Preview(msgspec.Struct, frozen=True):
    """What a redrive would do now.

    ``counts`` has the letters by result, those of ``looked_at`` only, and ``kinds`` those that would be applied, by the
    kind of their effect; ``examples`` some letters of each result, as ``[id, detail]``; ``notes`` what the operator
    must know.
    """

    total: int
    looked_at: int
    counts: dict[str, int]
    kinds: dict[str, int]
    examples: dict[str, list[tuple[int, str]]]
    notes: list[str]
    seconds: float


def redrive_letters(redrive_id: int) -> tuple[int, list[int]]:
    """Return how many letters of a redrive are to be replayed, and the ids of an even sample of them."""
    total = RedriveItem.objects.filter(redrive_id=redrive_id, done_at=None).count()
    with connection.cursor() as cursor:
        cursor.execute(_SAMPLE, {"redrive": redrive_id, "most": MOST_PREVIEWED})
        return total, [letter_id for (letter_id,) in cursor.fetchall()]


def preview_letters(letter_ids: Iterable[int], *, total: int, accepts_delay: bool = False) -> Preview:
    """Replay the letters in order, each in a savepoint, and roll everything back.

    Letters past two seconds, behind a lock, or of a coupon on sale (unless ``accepts_delay``) are "not previewed".
    Raises PreviewBusy, and what the database raises when it is away. Must not run in a transaction.
    """
    wanted = list(letter_ids)
    letters = list(DeadLetter.objects.filter(pk__in=wanted).order_by("pk"))
    deleted = set(wanted) - {letter.pk for letter in letters}
    disturbing = {} if accepts_delay else _disturbing(letters)
    started_at = time.monotonic()
    outcomes = [(letter_id, str(ReplayResult.DONE_ALREADY), "deleted after its retention") for letter_id in deleted]
    with transaction.atomic(durable=True):
        _prepare()
        outcomes += [
            _outcome(letter, disturbing, PREVIEW_SECONDS - (time.monotonic() - started_at)) for letter in letters
        ]
        transaction.set_rollback(True)
    return _summary(outcomes, total, time.monotonic() - started_at, set(disturbing.values()))


def _prepare() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", [_LOCK])
        if cursor.fetchone() != (True,):
            raise PreviewBusy("another preview is being made")
        # A replay fails at its commit where a deferred constraint does: here there is no commit.
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")


def _limit(seconds: float) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            f"SET LOCAL lock_timeout = {round(LOCK_SECONDS * 1000)};"
            f" SET LOCAL statement_timeout = {max(1, round(seconds * 1000))}"
        )


def _outcome(letter: DeadLetter, disturbing: Mapping[int, str], seconds_left: float) -> tuple[int, str, str]:
    if letter.pk in disturbing:
        return letter.pk, NOT_PREVIEWED, disturbing[letter.pk]
    if seconds_left <= 0:
        return letter.pk, NOT_PREVIEWED, f"the {PREVIEW_SECONDS:g} s of a preview were over"
    try:
        # Past a limit, the savepoint is rolled back and the next letter can follow.
        with transaction.atomic():
            _limit(seconds_left)
            replayed = replay_in_transaction(letter)
        return letter.pk, str(replayed.result), replayed.detail
    except CallPostponed as error:
        return letter.pk, NOT_PREVIEWED, first_line(error)
    except Exception as error:
        if is_over_limit(error):
            return letter.pk, NOT_PREVIEWED, f"it waited for a lock, or took too long: {first_line(error)}"
        if is_database_outage(error) or not is_transient(error):
            raise
        return letter.pk, NOT_PREVIEWED, f"a service is away: {first_line(error)}"


def _group_of(letter: DeadLetter) -> ConsumerGroup | None:
    """Return the group whose locks the replay takes: of a letter of the relay, one that handles its type."""
    if letter.consumer_group != RELAY:
        return groups().get(letter.consumer_group)
    return next((group for group in groups().values() if letter.event_type in group.event_types), None)


def _disturbing(letters: Iterable[DeadLetter]) -> dict[int, str]:
    """Return why the preview of letters would disturb running work, by letter id."""
    values: defaultdict[str, dict[int, Any]] = defaultdict(dict)
    for letter in letters:
        group = _group_of(letter)
        if group is None:
            continue
        try:
            values[group.name][letter.pk] = group.decode(letter_message(letter))
        except Exception as error:
            # The replay fails as well, before it locks anything.
            if is_transient(error):
                raise
    found: dict[int, str] = {}
    for name, by_letter in values.items():
        reasons = groups()[name].preview_disturbs(list(by_letter.values()))
        found |= {letter_id: reason for letter_id, reason in zip(by_letter, reasons, strict=True) if reason}
    return found


def _summary(outcomes: list[tuple[int, str, str]], total: int, seconds: float, reasons: set[str]) -> Preview:
    counts = Counter(result for _, result, _ in outcomes)
    kinds = Counter(detail.partition(":")[0] for _, result, detail in outcomes if result == ReplayResult.APPLIED)
    examples: defaultdict[str, list[tuple[int, str]]] = defaultdict(list)
    for letter_id, result, detail in outcomes:
        if len(examples[result]) < _MOST_EXAMPLES:
            examples[result].append((letter_id, detail))
    notes = sorted(reasons)
    if total > len(outcomes):
        notes.append(f"{len(outcomes)} of {total} letters were looked at, evenly spread")
    return Preview(total, len(outcomes), dict(counts), dict(kinds), dict(examples), notes, round(seconds, 3))
