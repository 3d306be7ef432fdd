"""A small sale on a hidden copy of a coupon: the running processes do the work, and each step is timed.

It goes through everything but calls to others: admission, outbox, relay, issuer, status, result events, gate. The
requests are those of reserved users, see ``policy.is_rehearsal``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from uuid import UUID

from django.db import connection
from redis.exceptions import RedisError

from common.postgres import arrays
from common.processes.lifecycle import StopFlag, first_line
from kafka_bridge.models import OutboxMessage, ProcessedEvent
from kafka_bridge.operating.preflight import CheckLine, Verdict, outage_line
from kafka_bridge.outbox.published import is_published_sql

from .. import policy, selectors
from ..admission.gate.store import GateStore
from ..admission.reservations import GATE
from ..consumer_groups import RESULTS
from ..errors import AlreadyIssued, SoldOut
from ..housekeeping import rehearsal_gates_delete
from ..issuance.finish import find_decided
from ..messages import ISSUE_FAILED, ISSUE_SUCCEEDED
from ..models import Coupon
from .clone import OPEN_FOR, clone_close, clone_create
from .senders import CodeSender, Sender, SentRequest

UNITS = 10
USERS = 15
# How long a step may take before the rehearsal ends.
STEP_SECONDS = 15.0
_POLL_SECONDS = 0.1

_PUBLISHED = f"""
    SELECT count(*) FROM unnest(%s::uuid[]) AS asked (id)
    CROSS JOIN LATERAL (SELECT * FROM kafka_bridge_outboxmessage WHERE event_id = asked.id LIMIT 1) AS message
    WHERE {is_published_sql("message")}
"""


def rehearse(
    coupon_type: str,
    *,
    actor: str,
    stop: StopFlag,
    sender: Sender | None = None,
    reason: str = "",
    step_seconds: float = STEP_SECONDS,
) -> list[CheckLine]:
    """Run the small sale and return a line per step; the first that fails or is late ends it.

    ``sender`` None sends the requests to the code of ``web`` in this process. What killed rehearsals left is deleted
    first. The copy is closed in any case; if it cannot be, a line says so, and an outage during the sale is a line too.
    Raises database errors and RedisError of what comes before the copy.
    """
    coupon = selectors.coupons().filter(coupon_type=coupon_type).first()
    if coupon is None:
        return [CheckLine("rehearsal", Verdict.NO_GO, f"there is no coupon {coupon_type}", "create it first")]
    rehearsal_gates_delete(stop)
    clone = clone_create(coupon, units=UNITS, actor=actor, reason=reason)
    lines = [CheckLine("copy", Verdict.GO, f"{clone.coupon_type} with {UNITS} units")]
    closed: list[CheckLine] = []
    try:
        for line in _Sale(clone, sender or CodeSender(), stop, step_seconds).steps():
            lines.append(line)
            if line.verdict is not Verdict.GO:
                break
    except Exception as error:
        # It drops a broken session, so that the cleanup has another one.
        lines.append(outage_line("sale", error))
    finally:
        closed.append(_cleanup(clone))
    return lines + closed


def _cleanup(clone: Coupon) -> CheckLine:
    """Close the copy; an outage must not take the lines of the sale with it."""
    name = clone.coupon_type
    try:
        clone_close(clone)
    except RedisError as error:
        found = f"{name} is closed, but its gate is still in Redis: {first_line(error)}"
        remedy = "start Redis: the housekeeper deletes the gate, or the next rehearsal"
        return CheckLine("cleanup", Verdict.NO_GO, found, remedy)
    except Exception as error:
        # Raises what is no outage. The line itself would not name the copy.
        outage_line("cleanup", error)
        minutes = round(OPEN_FOR.total_seconds() / 60)
        found = f"the copy {name} stays open until {minutes} minutes after it was made: {first_line(error)}"
        close = f"UPDATE {Coupon._meta.db_table} SET closes_at = now() WHERE coupon_type = '{name}'"
        return CheckLine("cleanup", Verdict.NO_GO, found, f"it closes by itself; to close it at once, in psql: {close}")
    return CheckLine("cleanup", Verdict.GO, f"{name} is closed; its rows stay hidden")


class _Sale:
    def __init__(self, clone: Coupon, sender: Sender, stop: StopFlag, step_seconds: float) -> None:
        self._clone = clone
        self._sender = sender
        self._stop = stop
        self._step_seconds = step_seconds
        self._started_at = time.monotonic()
        self._accepted: list[SentRequest] = []

    def steps(self) -> Iterator[CheckLine]:
        yield self._accept()
        ids = self._ids()
        yield self._wait(
            "published",
            lambda: (_number_published(ids), len(ids)),
            "the relay does not publish the requests: python manage.py relay_outbox",
        )
        yield self._wait(
            "decided",
            lambda: (len(find_decided(ids)), len(ids)),
            "the issuer does not decide them: python manage.py consume_coupons --group issue",
        )
        yield self._statuses()
        yield self._wait(
            "results",
            lambda: (self._number_notified(), len(ids)),
            "the result events are not handled: python manage.py consume_coupons --group results",
        )
        if self._clone.admission == GATE:
            gate = GateStore(self._clone.id)
            yield self._wait(
                "gate",
                lambda: (UNITS - len(gate.pending_for(-1.0, limit=UNITS)), UNITS),
                "the gate still counts decided requests as pending: python manage.py reconcile --repair",
            )

    def _accept(self) -> CheckLine:
        """Send a request for each user, and the first one's again."""
        first = policy.FIRST_REHEARSAL_USER
        sent = [
            request
            for users in (range(first, first + USERS), (first,))
            for request in self._sender.send(self._clone, users)
        ]
        found = f"{self._passed():.2f} s, {self._sender.way}"
        for request in sent:
            if request.request_id is None and request.code not in (SoldOut.code, AlreadyIssued.code):
                remedy = "see the lines of processes, gate and Redis"
                return CheckLine("accepted", Verdict.NO_GO, f"{found}: refused: {request.why}", remedy)
        self._accepted = [request for request in sent if request.request_id is not None]
        if len(self._accepted) < UNITS:
            remedy = "run reconcile --repair: the admission does not give the units of a new coupon"
            found = f"{found}: {len(self._accepted)} of {UNITS} units were given"
            return CheckLine("accepted", Verdict.NO_GO, found, remedy)
        refused = len(sent) - len(self._accepted)
        return CheckLine(
            "accepted",
            Verdict.GO,
            f"{found}: {len(self._accepted)} of {len(sent)} requests, {refused} refused at once",
        )

    def _ids(self) -> list[UUID]:
        return [request.request_id for request in self._accepted if request.request_id is not None]

    def _statuses(self) -> CheckLine:
        statuses = self._sender.statuses(self._accepted)
        issued = {
            request.user_id
            for request, status in zip(self._accepted, statuses, strict=True)
            if status == policy.SUCCESS
        }
        found = f"{self._passed():.2f} s: {len(issued)} users of {USERS} have one of {UNITS} units"
        if len(issued) == UNITS and set(statuses) <= {policy.SUCCESS, policy.FAILED}:
            return CheckLine("status", Verdict.GO, found)
        return CheckLine("status", Verdict.NO_GO, found, "run check_invariants: what was decided is wrong")

    def _number_notified(self) -> int:
        """Count the results that the group ``results`` has handled, by the trace that a result has of its request."""
        # The results' rows come after those of their requests.
        requests = OutboxMessage.objects.filter(event_id__in=self._ids()).values_list("id", "traceparent")
        row_ids, traces = zip(*requests, strict=True)
        results = OutboxMessage.objects.filter(
            id__gt=min(row_ids), event_type__in=[ISSUE_SUCCEEDED, ISSUE_FAILED], traceparent__in=traces
        ).values_list("event_id", flat=True)
        handled = ProcessedEvent.objects.filter(consumer_group=RESULTS.name, event_id__in=list(results))
        return handled.count()

    def _wait(self, name: str, progress: Callable[[], tuple[int, int]], remedy: str) -> CheckLine:
        """Wait until ``progress`` (done, wanted) is complete, for the time of a step at most."""
        deadline = time.monotonic() + self._step_seconds
        done, wanted = progress()
        while done < wanted and time.monotonic() < deadline:
            if self._stop.wait(_POLL_SECONDS):
                return CheckLine(name, Verdict.NO_GO, "stopped", "run the rehearsal again")
            done, wanted = progress()
        found = f"{self._passed():.2f} s: {done} of {wanted}"
        if done < wanted:
            return CheckLine(name, Verdict.NO_GO, f"{found}, waited {self._step_seconds:g} s", remedy)
        return CheckLine(name, Verdict.GO, found)

    def _passed(self) -> float:
        return time.monotonic() - self._started_at


def _number_published(event_ids: Sequence[UUID]) -> int:
    with connection.cursor() as cursor:
        cursor.execute(_PUBLISHED, [arrays.uuids(event_ids)])
        (number,) = cursor.fetchone() or (0,)
        return int(number)
