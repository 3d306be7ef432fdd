"""Preview of a redrive: its letters through the real handlers, in a transaction that is rolled back.

Handlers do everything outside PostgreSQL after the commit, or in their call: a preview has neither.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
from django.db import connection, transaction

from common.chunks import chunks
from common.processes.lifecycle import first_line
from common.processes.outages import is_contention, is_database_outage, is_transient
from common.throttling import CallPostponed

from ..consuming.dead_letters import RELAY
from ..models import DeadLetter, RedriveItem
from ..registry import ConsumerGroup, groups
from .replay import SENT, ReplayResult, replay_in_transaction
from .stored_messages import letter_message

# Of a larger set so many letters are previewed, evenly spread.
MOST_PREVIEWED = 500
PREVIEW_SECONDS = 2.0
LOCK_SECONDS = 0.2
NOT_PREVIEWED = "not_previewed"
_MOST_EXAMPLES = 5
# Decoded together, so that few payloads are in memory at once.
_LETTERS_AT_ONCE = 25
# A limit is set anew when so much less is left: not for each of a letter's short statements.
_LIMIT_STEP_SECONDS = 0.05
# Of the time, in which the first letters may be behind.
_LATE_START = 0.05

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
# Without what may be long and a replay does not need.
_LETTERS = DeadLetter.objects.defer("traceback", "error_message")


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

    Letters behind a lock, of a coupon on sale (unless ``accepts_delay``), or without a turn in the two seconds, are
    "not previewed". Those that had a turn are spread evenly over ``letter_ids``. Raises PreviewBusy, and what the
    database raises when it is away. Must not run in a transaction.
    """
    clock = _Clock(PREVIEW_SECONDS)
    wanted = list(letter_ids)
    with transaction.atomic(durable=True), connection.execute_wrapper(clock):
        _prepare()
        disturbing = {} if accepts_delay else _disturbing(wanted)
        outcomes = {letter_id: _outcome(letter_id, disturbing) for letter_id in _paced(wanted, clock)}
        transaction.set_rollback(True)
    unreached = f"the {PREVIEW_SECONDS:g} s of a preview were over"
    in_order = [outcomes.get(letter_id, (letter_id, NOT_PREVIEWED, unreached)) for letter_id in wanted]
    return _summary(in_order, total, len(outcomes), clock.seconds, set(disturbing.values()))


class _Clock:
    """The time of a preview: each of its statements gets what is left, so that all of them have no more together."""

    def __init__(self, seconds: float) -> None:
        self._started_at = time.monotonic()
        self._ends_at = self._started_at + seconds
        # The limit that the session has now.
        self._limit = float("inf")

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._started_at

    @property
    def left(self) -> float:
        """Seconds until the end, negative after it."""
        return self._ends_at - time.monotonic()

    def __call__(self, execute: Callable[..., Any], sql: str, params: Any, many: bool, context: dict[str, Any]) -> Any:
        """Execute a statement within the time that is left."""
        if sql.startswith("ROLLBACK TO"):
            # The session has the limit of the savepoint again, and obeys nothing else after an error.
            self._limit = float("inf")
        elif self._limit - (left := self.left) >= _LIMIT_STEP_SECONDS:
            self._limit = left
            # Beside Django's cursors, whose statements come here.
            with connection.wrap_database_errors, connection.connection.cursor() as cursor:
                cursor.execute(f"SET LOCAL statement_timeout = {max(1, round(left * 1000))}")
        return execute(sql, params, many, context)


def _paced(wanted: Sequence[int], clock: _Clock) -> Iterator[int]:
    """Yield ids in order while there is time, skipping some as soon as it would not be enough for all.

    Skipped ids come last, if there is time for them after all. So what was yielded when the time ends is spread evenly.
    """
    while wanted:
        skipped: list[int] = []
        seconds = clock.left
        for number, letter_id in enumerate(wanted):
            left = clock.left
            if left <= 0:
                return
            # The share of letters passed may not fall behind the share of time: a little in the beginning, since the
            # first letters take longer, and not at all in the end.
            if number / len(wanted) < 1 - left / seconds * (1 + _LATE_START):
                skipped.append(letter_id)
            else:
                yield letter_id
        wanted = skipped


def _prepare() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", [_LOCK])
        if cursor.fetchone() != (True,):
            raise PreviewBusy("another preview is being made")
        # A replay fails at its commit where a deferred constraint does: here there is no commit.
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        # A process that hangs, or whose machine is stopped, must not keep the locks of the handlers for longer.
        cursor.execute(f"SET LOCAL idle_in_transaction_session_timeout = {round(PREVIEW_SECONDS * 1000)}")


def _outcome(letter_id: int, disturbing: Mapping[int, str]) -> tuple[int, str, str]:
    if letter_id in disturbing:
        return letter_id, NOT_PREVIEWED, disturbing[letter_id]
    try:
        # Past a limit, the savepoint is rolled back and the next letter can follow.
        with transaction.atomic():
            _limit_lock_waits()
            letter = _LETTERS.filter(pk=letter_id).first()
            if letter is None:
                return letter_id, str(ReplayResult.DONE_ALREADY), "deleted after its retention"
            replayed = replay_in_transaction(letter)
        return letter_id, str(replayed.result), replayed.detail
    except CallPostponed as error:
        return letter_id, NOT_PREVIEWED, first_line(error)
    except Exception as error:
        if is_contention(error):
            return letter_id, NOT_PREVIEWED, f"it waited for a lock, or took too long: {first_line(error)}"
        if is_database_outage(error) or not is_transient(error):
            raise
        return letter_id, NOT_PREVIEWED, f"a service is away: {first_line(error)}"


def _limit_lock_waits() -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"SET LOCAL lock_timeout = {round(LOCK_SECONDS * 1000)}")


def _group_of(letter: DeadLetter) -> ConsumerGroup | None:
    """Return the group whose locks the replay takes: of a letter of the relay, one that handles its type."""
    if letter.consumer_group != RELAY:
        return groups().get(letter.consumer_group)
    return next((group for group in groups().values() if letter.event_type in group.event_types), None)


def _disturbing(letter_ids: Sequence[int]) -> dict[int, str]:
    """Return why the preview of letters would disturb running work, by letter id."""
    try:
        with transaction.atomic():
            _limit_lock_waits()
            return _reasons(_decoded(letter_ids))
    except Exception as error:
        if not is_contention(error):
            raise
        return dict.fromkeys(letter_ids, f"there was no time to see what it would disturb: {first_line(error)}")


def _decoded(letter_ids: Sequence[int]) -> dict[str, dict[int, Any]]:
    """Decode the letters of groups that a preview can disturb: ``{group: {letter: decoded}}``."""
    values: defaultdict[str, dict[int, Any]] = defaultdict(dict)
    names = [RELAY, *(name for name, group in groups().items() if group.preview_disturbs is not None)]
    for ids in chunks(letter_ids, _LETTERS_AT_ONCE):
        for letter in _LETTERS.filter(pk__in=ids, consumer_group__in=names):
            group = _group_of(letter)
            if group is None or group.preview_disturbs is None:
                continue
            try:
                values[group.name][letter.pk] = group.decode(letter_message(letter))
            except Exception as error:
                # The replay fails as well, before it locks anything.
                if is_transient(error):
                    raise
    return values


def _reasons(values: Mapping[str, Mapping[int, Any]]) -> dict[int, str]:
    found: dict[int, str] = {}
    for name, by_letter in values.items():
        preview_disturbs = groups()[name].preview_disturbs
        assert preview_disturbs is not None
        reasons = preview_disturbs(list(by_letter.values()))
        found |= {letter_id: reason for letter_id, reason in zip(by_letter, reasons, strict=True) if reason}
    return found


def _summary(
    outcomes: Sequence[tuple[int, str, str]], total: int, reached: int, seconds: float, reasons: set[str]
) -> Preview:
    counts = Counter(result for _, result, _ in outcomes)
    kinds = Counter(detail.partition(":")[0] for _, result, detail in outcomes if result == ReplayResult.APPLIED)
    examples: defaultdict[str, list[tuple[int, str]]] = defaultdict(list)
    for letter_id, result, detail in outcomes:
        if len(examples[result]) < _MOST_EXAMPLES:
            examples[result].append((letter_id, detail))
    notes = sorted(reasons)
    if SENT in kinds:
        notes.append("a preview makes no call: whether the receiver accepts it is not known")
    if reached < len(outcomes):
        notes.append(f"{PREVIEW_SECONDS:g} s were enough for {reached} of {total} letters, evenly spread")
    elif total > len(outcomes):
        notes.append(f"{len(outcomes)} of {total} letters were looked at, evenly spread")
    return Preview(total, len(outcomes), dict(counts), dict(kinds), dict(examples), notes, round(seconds, 3))
