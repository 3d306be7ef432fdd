"""Requests of the same moment share the question to their admission, one INSERT and one commit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

import msgspec
from django.db import transaction

from kafka_bridge.carriers import carried_row
from kafka_bridge.group_commit import GroupCommit
from kafka_bridge.outbox import OutboxRow, insert_new_rows, outbox_row

from .. import request_log
from ..admission import ADMISSIONS, Admission, Candidate, Outcome, reservations
from ..catalogue import CatalogueEntry
from ..errors import DomainError
from ..events import IssueRequested
from ..messages import message_of
from ..worker import CARRIER
from ..worker.pushing import push


class Asked(NamedTuple):
    """A request at the door; ``row`` is its outbox row if nothing of it is still to be known."""

    candidate: Candidate
    request: IssueRequested
    traceparent: str
    row: OutboxRow | None


class Answer(NamedTuple):
    """``new``: an outbox row was inserted; else it was there, or there is a refusal."""

    refusal: type[DomainError] | None
    sequence: int | None
    new: bool


def asked(admission: Admission, candidate: Candidate, request: IssueRequested, traceparent: str) -> Asked:
    """What goes into a line. Without a place in line the row is made here, and not while others wait."""
    row = None if admission.selective else outbox_row(message_of(request, traceparent=traceparent))
    return Asked(candidate, request, traceparent, row)


def accept_together(admission: Admission, group: Sequence[Asked]) -> list[Answer]:
    """Ask the admission about requests of the same moment, and insert the outbox rows of those that it lets in."""
    outcomes = admission.admit([one.candidate for one in group])
    answers = [Answer(outcome.refusal, outcome.sequence, new=False) for outcome in outcomes]
    let_in = [place for place, outcome in enumerate(outcomes) if outcome.refusal is None]
    if not let_in:
        return answers
    written = False
    try:
        with transaction.atomic():
            inserted = _write(admission, [group[place] for place in let_in], [outcomes[place] for place in let_in])
            # From here on only the commit can fail, and then nobody knows whether it happened.
            written = True
    except BaseException:
        if not written:
            admission.withdraw([group[place].candidate for place in let_in if outcomes[place].fresh])
        raise
    for place, answer in zip(let_in, inserted, strict=True):
        answers[place] = answer
    _tell(one for one, answer in zip(group, answers, strict=True) if answer.new)
    admission.withdraw([group[place].candidate for place in let_in if outcomes[place].fresh and answers[place].refusal])
    return answers


def _write(admission: Admission, group: Sequence[Asked], admitted: Sequence[Outcome]) -> list[Answer]:
    """The rows of requests that were let in, unless the record or an earlier row says otherwise."""
    recorded = admission.record([one.candidate for one in group], admitted)
    let_in = [place for place, outcome in enumerate(recorded) if outcome.refusal is None]
    inserted = insert_new_rows([_row(group[place], recorded[place].sequence) for place in let_in]) if let_in else []
    new = {place for place, is_new in zip(let_in, inserted, strict=True) if is_new}
    for_worker = [group[place].candidate.request_id for place in sorted(new) if group[place].candidate.by_worker]
    if for_worker:
        # With Redis away they are accepted all the same: the worker finds them by their reservations.
        transaction.on_commit(partial(push, for_worker), robust=True)
    # A request that another admission let in before, under the same key: it has what it has.
    strays = [group[place].candidate.request_id for place in let_in if recorded[place].fresh and place not in new]
    if strays:
        reservations.give_back(strays)
    return [Answer(outcome.refusal, outcome.sequence, place in new) for place, outcome in enumerate(recorded)]


def _row(one: Asked, sequence: int | None) -> OutboxRow:
    if one.row is not None:
        return one.row
    request = msgspec.structs.replace(one.request, sequence=sequence)
    row = outbox_row(message_of(request, traceparent=one.traceparent))
    return carried_row(row, CARRIER) if one.candidate.by_worker else row


def _tell(accepted: Iterable[Asked]) -> None:
    request_log.tell_all(
        "request accepted",
        [
            {
                "requestId": one.candidate.request_id,
                "couponType": one.request.coupon_type,
                "userId": one.candidate.user_id,
                "traceparent": one.traceparent,
            }
            for one in accepted
        ],
    )


class Lines:
    """Where requests of the same few milliseconds meet, to share a call, an INSERT and a commit."""

    _MOST = 10_000

    def __init__(self) -> None:
        self._lines: dict[tuple[str, int], GroupCommit[Asked, Answer]] = {}

    def of(self, coupon: CatalogueEntry) -> GroupCommit[Asked, Answer]:
        admission = ADMISSIONS[coupon.admission]
        key = (coupon.admission, coupon.coupon_id if admission.selective else 0)
        line = self._lines.get(key)
        if line is None:
            # Whoever waits in a line that is forgotten here is answered all the same.
            if len(self._lines) >= self._MOST:
                self._lines.clear()
            line = self._lines.setdefault(key, GroupCommit(partial(accept_together, admission)))
        return line


lines = Lines()
