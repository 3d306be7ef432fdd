"""What a relay has sent of its shards: in memory after every pass, and a few times a second in the lease rows."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection, Sequence
from functools import reduce
from operator import or_
from typing import Any
from uuid import UUID

from django.db import connection

from common.postgres import arrays

from ..id_ranges import IdRangesField
from .publisher import OutboxRecord
from .unsent_ids import UnsentIds

# How much is sent again after a crash. A tenth of the time at most goes into saving: while an old snapshot is open, the
# dead versions of the lease rows make it slow.
_SAVE_SECONDS = 0.2
_SHARE_OF_TIME = 0.1

_LOAD = "SELECT shard, sent_through, gaps::text FROM kafka_bridge_relaylease WHERE owner = %s"
# A server that crashed, or another one after a failover, may assign ids again that this relay counts as sent. So what
# is in memory is used only in the session in which it was read: a proxy can hide that the server is another one.
SESSION = "pg_backend_pid(), pg_postmaster_start_time()"
# Without a flush of the log: a position that a crash loses is an older position, and rows are sent again.
_SAVE = """
    UPDATE kafka_bridge_relaylease SET position = %s, sent_through = %s, gaps = %s::int8multirange
    FROM (SELECT set_config('synchronous_commit', 'off', true)) AS without_flush
    WHERE owner = %s AND shard = ANY(%s::int[]) AND pg_backend_pid() = %s AND pg_postmaster_start_time() = %s
"""


class LeaseLost(Exception):
    """Another relay has a shard, or the server is another one: nothing may be sent before all is read again."""


class Positions:
    """The unsent ids of the shards of one relay, which reads all its shards together.

    ``unsent`` is what to read: an id that is unsent in any shard. A shard taken over from a relay that was ahead
    excludes what that relay has sent.
    """

    def __init__(self, owner: UUID) -> None:
        self._owner = owner
        self.forget()

    def forget(self) -> None:
        """Drop what is in memory; ``load`` must follow before the next pass."""
        self.unsent = UnsentIds.after(0)
        self._shards: Sequence[int] = ()
        # The unsent ids at the last load, of shards in which they are not those of `unsent`.
        self._ahead: dict[int, UnsentIds] = {}
        self._session: tuple[Any, ...] = ()
        self._saved: UnsentIds | None = None
        self._next_save_at = 0.0

    def is_of(self, shards: Sequence[int]) -> bool:
        """Whether the positions of exactly ``shards`` are loaded."""
        return self._shards == shards

    def load(self, shards: Sequence[int]) -> None:
        """Read the saved positions of ``shards``. Raises LeaseLost if another relay has one of them."""
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT {SESSION}")
            session = cursor.fetchone() or ()
            cursor.execute(_LOAD, [self._owner])
            found = {
                shard: UnsentIds.after(sent_through, IdRangesField.parse(gaps))
                for shard, sent_through, gaps in cursor.fetchall()
            }
        if found.keys() != set(shards):
            raise LeaseLost(f"this relay holds {len(found)} shards, not {len(shards)}")
        self.forget()
        self._session = session
        self._shards = shards
        self.unsent = reduce(or_, set(found.values())) if found else self.unsent
        self._ahead = {shard: unsent for shard, unsent in found.items() if unsent != self.unsent}

    def check_session(self, session: Sequence[Any]) -> None:
        """Raise LeaseLost unless the positions were read in ``session``, the values of ``SESSION``."""
        if tuple(session) != self._session:
            raise LeaseLost("the session of the database is another one")

    def only_unsent(self, rows: Sequence[OutboxRecord]) -> Sequence[OutboxRecord]:
        """Return those of ``rows`` that no earlier relay has sent."""
        if not self._ahead:
            return rows
        return [row for row in rows if (ahead := self._ahead.get(row.shard)) is None or row.id in ahead]

    def advance(self, seen: Sequence[int], *, settled: int, complete_through: int | None) -> None:
        """Count the ``seen`` ids (ascending, of all shards) as sent, after a read of all that is unsent.

        ``settled``: an id up to which the read saw every row. ``complete_through``: the id at which the read ended at
        its limit, None if it saw everything.
        """
        unsent = self.unsent.without(seen)
        if complete_through is not None:
            settled = min(settled, complete_through)
        self.unsent = unsent.without_up_to(settled)
        if self._ahead:
            position = self.unsent.position
            self._ahead = {shard: ahead for shard, ahead in self._ahead.items() if ahead.sent_through > position}

    @property
    def is_save_due(self) -> bool:
        """Whether there is something to save, and the last time is long enough ago."""
        return self._saved is not self.unsent and time.monotonic() >= self._next_save_at

    def save(self) -> None:
        """Write the positions to the lease rows. Raises LeaseLost if another relay holds one of them."""
        if self._saved is self.unsent or not self._shards:
            return
        started_at = time.monotonic()
        groups: dict[UnsentIds, list[int]] = defaultdict(list)
        for shard in self._shards:
            ahead = self._ahead.get(shard)
            groups[self.unsent if ahead is None else self.unsent & ahead].append(shard)
        for unsent, shards in groups.items():
            self._save(unsent.storable(), shards)
        self._saved = self.unsent
        now = time.monotonic()
        self._next_save_at = now + max(_SAVE_SECONDS, (now - started_at) / _SHARE_OF_TIME)

    def _save(self, unsent: UnsentIds, shards: Collection[int]) -> None:
        gaps = IdRangesField.text(unsent.gaps)
        with connection.cursor() as cursor:
            values: list[Any] = [
                unsent.position,
                unsent.sent_through,
                gaps,
                self._owner,
                arrays.numbers(shards),
                *self._session,
            ]
            cursor.execute(_SAVE, values)
            if cursor.rowcount != len(shards):
                raise LeaseLost(
                    "another relay holds a shard of this one, or the session of the database is another one"
                )
