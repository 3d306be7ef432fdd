"""An id below which the relay need not look: every row at or under it is published, and no other can appear.

Without it the relay's read begins at the dead entries that published rows leave at the head of the partial index,
which pile up while any transaction keeps an old snapshot open.
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
    """Learns an id up to which every row of the outbox is committed or will never be, by watching inserters end.

    A row takes its id after its transaction took RowExclusiveLock on the table. So: read the sequence, then the
    holders of that lock; once all of those have ended, every row up to the value read is visible or never will be.
    """

    def __init__(self) -> None:
        self.value = 0
        self._candidate = 0
        self._awaited: set[str] | None = None

    def observe(self) -> None:
        """Look once more; two small queries at most. Raises what the database raises."""
        with connection.cursor() as cursor:
            if self._awaited is None:
                cursor.execute(_SEQUENCE)
                row = cursor.fetchone()
                self._candidate = row[0] if row else 0
            cursor.execute(_INSERTERS)
            holders = {holder for (holder,) in cursor.fetchall()}
        self._awaited = holders if self._awaited is None else self._awaited & holders
        if not self._awaited:
            self.value = self._candidate
            self._awaited = None


class SettledMark:
    """The floor of one relay: settled ids, as far as they are published."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Look at everything again. Needed after a lost connection: a crashed server may hand out ids once more."""
        self._value = 0
        self._settled = SettledIds()
        self._observed_at = time.monotonic()
        self._reset_at = time.monotonic()

    def value(self) -> int:
        """The id to read above."""
        if time.monotonic() - self._reset_at > _RESET_SECONDS:
            self.reset()
        return self._value

    def advance(self, *, first_unpublished: int | None) -> None:
        """Take note of a read above ``value()`` over the relay's shards, whose first row had that id (None: no row).

        Raises what the database raises. Costs two small queries a second.
        """
        settled = self._settled.value
        if settled > self._value:
            # The read came after the inserters had ended, so what it did not see does not exist.
            self._value = settled if first_unpublished is None else min(settled, first_unpublished - 1)
        if time.monotonic() - self._observed_at >= _OBSERVE_SECONDS:
            self._observed_at = time.monotonic()
            self._settled.observe()
