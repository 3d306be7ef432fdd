"""The settled mark: an outbox id up to which every row is committed or will never be.

A row is sent as soon as it is visible. An id that is not visible may still become a row while its transaction is open;
the settled mark tells when that is no longer possible.
"""

from __future__ import annotations

import time

from django.db import connection

_OBSERVE_SECONDS = 1.0

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
        # Those of the transactions open at the reading of the candidate that are open still.
        self.open_inserters: set[str] = set()

    def observe(self) -> None:
        """Make one observation, with at most two small queries. Raises what the database raises."""
        with connection.cursor() as cursor:
            is_new = not self.open_inserters
            if is_new:
                cursor.execute(_SEQUENCE)
                row = cursor.fetchone()
                self._candidate = row[0] if row else 0
            cursor.execute(_INSERTERS)
            holders = {holder for (holder,) in cursor.fetchall()}
        self.open_inserters = holders if is_new else self.open_inserters & holders
        if not self.open_inserters:
            self.value = self._candidate


class SettledMark:
    """The settled mark of one relay, observed once a second."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start again from id 0. Needed after a lost connection: a crashed server may assign the same ids again."""
        self._settled = SettledIds()
        self._observe_at = 0.0
        self._moved_at = time.monotonic()

    @property
    def value(self) -> int:
        """The id up to which every read that begins now sees every row."""
        return self._settled.value

    @property
    def stands_for(self) -> float:
        """For how many seconds open transactions have kept the mark where it is; 0 if there are none."""
        return time.monotonic() - self._moved_at if self._settled.open_inserters else 0.0

    @property
    def holders(self) -> set[str]:
        """The virtual transactions that keep the mark where it is."""
        return self._settled.open_inserters

    def observe_when_due(self) -> bool:
        """Make an observation if the last one is a second old; returns whether. Raises what the database raises."""
        if time.monotonic() < self._observe_at:
            return False
        self._observe_at = time.monotonic() + _OBSERVE_SECONDS
        self._settled.observe()
        if not self._settled.open_inserters:
            self._moved_at = time.monotonic()
        return True
