"""Find events of orders that never reached an effect, and have them sent again.

A group has read its topic to the end and an effect misses an event: its offsets moved on without the effect, because
the effect joined an id that was ahead of it, or because an operator set the offsets. The inbox shows it: an effect
enters there what it has handled. The event is sent again under its id, and repeats nothing for those that have it.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from uuid import UUID

from django.db import connection

from common.postgres.clock import database_time
from common.processes.lifecycle import StopFlag
from coupons.reconciliation.findings import EFFECT_MISSED, Findings
from kafka_bridge.client import group_lag
from kafka_bridge.outbox.holds import send_again

from .missed_effects import TRACKED_EVENTS, TrackedEvent, missed_sql, missed_values, read_by

# While a group is behind, all that it has not read is missed: finding the first ones is enough to ask for its lag.
_MOST = 1_000


class EffectsCheck:
    """Follows what effects have handled.

    ``patience``: seconds from the payment or cancellation in which nothing is missed. ``lag(group_id, topics)`` returns
    how many messages a group has not committed; by default Kafka is asked.
    """

    def __init__(self, patience: float, lag: Callable[[str, list[str]], int] = group_lag) -> None:
        self._patience = timedelta(seconds=patience)
        self._lag = lag
        # By event type and effect: every event up to this time has reached it.
        self._complete_until: dict[tuple[str, str], datetime] = {}
        # Sent again once: a group that still misses it is run without the effect.
        self._sent_again: set[tuple[str, UUID]] = set()

    def check(self, findings: Findings, stop: StopFlag, *, repair: bool) -> None:
        """Find missed events, at most 1,000 of an effect at a time. Raises ServiceUnavailable if Kafka is away."""
        for event in TRACKED_EVENTS:
            for effect in event.effects:
                if stop:
                    return
                self._check_effect(event, effect, findings, repair=repair)

    def _check_effect(self, event: TrackedEvent, effect: str, findings: Findings, *, repair: bool) -> None:
        until = database_time() - self._patience
        missed = self._missed(event, effect, until)
        if missed:
            if self._lag(*read_by(event, effect)) != 0:
                return
            # What was in transit has arrived since the lag was 0.
            missed = self._missed(event, effect, until)
        if not missed:
            self._complete_until[event.event_type, effect] = until
            return
        findings.add(EFFECT_MISSED, *(f"order {order}: {event.event_type} at {effect}" for order, _ in missed))
        unsent = {event_id for _, event_id in missed if (effect, event_id) not in self._sent_again}
        if repair and unsent:
            send_again(unsent)
            self._sent_again |= {(effect, event_id) for event_id in unsent}

    def _missed(self, event: TrackedEvent, effect: str, until: datetime) -> list[tuple[int, UUID]]:
        """Return order and event id of the events up to ``until`` that the effect does not have."""
        after = self._complete_until.get((event.event_type, effect))
        values = {**missed_values(event, effect, after=after), "until": until, "most": _MOST}
        with connection.cursor() as cursor:
            # Without its row an event cannot be sent again; `check_invariants` names it all the same.
            query = f"{missed_sql(event, f'o.id, o.{event.event_id}')} AND message.id IS NOT NULL LIMIT %(most)s"
            cursor.execute(query, values)
            return list(cursor.fetchall())
