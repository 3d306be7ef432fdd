"""The settled mark: the outbox id that the relay reads above.

Every row at or under it is published, and no new row can appear there. Without it each read of the relay first scans
the dead index entries that published rows leave at the head of the partial index; they accumulate while any
transaction keeps an old snapshot open.
"""

from __future__ import annotations

import time

from django.db import connection

_OBSERVE_SECONDS = 1.0
_RESET_SECONDS = 60.0

_SEQUENCE = "SELECT last_value FROM kafka_bridge_outboxmessage_id_seq WHERE is_called"
_INSERTERS = """
    SELECT virtualtransaction FROM pg_locks
    WHERE locktype = 'relation' AND mode = 'RowExclusiveLock' AND granted
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND relation = 'kafka_bridge_outboxmessage'::regclass
"""


class SettledIds:
    """Finds the outbox id up to which every row is committed or will never be, by watching inserting transactions end.

    A transaction takes RowExclusiveLock on the table before its rows get ids. So read the sequence first, then the
    holders of that lock: once all of them have ended, every row up to the value read is visible or never will be.
    """

    def __init__(self) -> None:
        self.value = 0
        self._candidate = 0
        self._open_inserters: set[str] | None = None

    def observe(self) -> None:
        """Make one observation, with at most two small queries. Raises what the database raises."""
        with connection.cursor() as cursor:
            if self._open_inserters is None:
                cursor.execute(_SEQUENCE)
                row = cursor.fetchone()
                self._candidate = row[0] if row else 0
            cursor.execute(_INSERTERS)
            holders = {holder for (holder,) in cursor.fetchall()}
        self._open_inserters = holders if self._open_inserters is None else self._open_inserters & holders
        if not self._open_inserters:
            self.value = self._candidate
            self._open_inserters = None


class SettledMark:
    """The settled mark of one relay: settled ids, as far as they are published."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start again from id 0. Needed after a lost connection: a crashed server may assign the same ids again."""
        self._value = 0
        self._settled = SettledIds()
        self._observed_at = time.monotonic()
        self._reset_at = time.monotonic()

    def value(self) -> int:
        """Return the id to read above."""
        if time.monotonic() - self._reset_at > _RESET_SECONDS:
            self.reset()
        return self._value

    def advance(self, *, first_unpublished: int | None) -> None:
        """Advance the mark after a read above ``value()`` over the relay's shards.

        ``first_unpublished`` is the id of the first row read, None if there was no row. Makes two small queries
        a second; raises what the database raises.
        """
        settled = self._settled.value
        if settled > self._value:
            # The read began after those inserters had ended, so it saw every unpublished row up to ``settled``.
            self._value = settled if first_unpublished is None else min(settled, first_unpublished - 1)
        if time.monotonic() - self._observed_at >= _OBSERVE_SECONDS:
            self._observed_at = time.monotonic()
            self._settled.observe()
