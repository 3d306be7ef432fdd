"""How PostgreSQL assigns outbox ids: what positions rely on, checked at the start and while the relay runs."""

from __future__ import annotations

from collections import deque
from datetime import datetime

from django.core.management.base import CommandError
from django.db import connection, transaction

from ..operating.alerts import alert_rule, clear_alert, open_alert
from ..outbox.settled_mark import SettledMark
from .positions import SESSION, Positions

_STANDS_TOO_LONG = 300.0
SETTLED_MARK = alert_rule("outbox-settled-mark", "warning")
SEQUENCE = alert_rule("outbox-sequence", "critical")

_SETTINGS = """
    SELECT cache_size, increment_by, cycle, current_setting('default_transaction_isolation'),
           (SELECT column_default FROM information_schema.columns
            WHERE table_name = 'kafka_bridge_outboxmessage' AND column_name = 'id' AND table_schema = current_schema()),
           (SELECT is_identity FROM information_schema.columns
            WHERE table_name = 'kafka_bridge_outboxmessage' AND column_name = 'id' AND table_schema = current_schema())
    FROM pg_sequences WHERE sequencename = 'kafka_bridge_outboxmessage_id_seq' AND schemaname = current_schema()
"""
_LAST_ID = "SELECT coalesce((SELECT last_value FROM kafka_bridge_outboxmessage_id_seq WHERE is_called), 0)"
_LOOK = f"""
    SELECT ({_LAST_ID}), statement_timestamp(), (SELECT coalesce(max(sent_through), 0) FROM kafka_bridge_relaylease),
           {SESSION}
"""
_STOP_INSERTS = "LOCK TABLE kafka_bridge_outboxmessage IN SHARE ROW EXCLUSIVE MODE"
# Rows that were inserted after the ids above the sequence had been assigned: their statements began later than that of
# the last row above it. A minute for statements that ran at the same time. Without such a row, all rows.
_HOLD_ROWS_BENEATH = """
    INSERT INTO kafka_bridge_heldmessage (message_id, shard, topic, reason, last_error)
    SELECT message.id, message.shard, message.topic, 'again', 'its id was assigned a second time'
    FROM kafka_bridge_outboxmessage AS message JOIN kafka_bridge_relaylease AS lease USING (shard)
    WHERE message.published_at IS NULL AND message.id <= lease.sent_through AND message.id <= %(last_id)s
      AND message.created_at >= coalesce((
          SELECT created_at FROM kafka_bridge_outboxmessage WHERE id > %(last_id)s ORDER BY id DESC LIMIT 1
      ) - interval '1 minute', '-infinity')
    ON CONFLICT DO NOTHING
"""
# A row under what was sent at an earlier look, but inserted after it.
_HOLD_ROWS_BORN_BENEATH = """
    INSERT INTO kafka_bridge_heldmessage (message_id, shard, topic, reason, last_error)
    SELECT id, shard, topic, 'again', 'its id was assigned a second time' FROM kafka_bridge_outboxmessage
    WHERE published_at IS NULL AND id > %(sent_through)s - %(ids)s AND id <= %(sent_through)s AND created_at > %(at)s
    ON CONFLICT DO NOTHING
"""
_LOOKS = 60
_SEARCHED_IDS = 5_000
_RAISE = """
    SELECT setval('kafka_bridge_outboxmessage_id_seq', greatest(
        %s, (SELECT max(sent_through) FROM kafka_bridge_relaylease), (SELECT max(id) FROM kafka_bridge_outboxmessage)
    ))
"""
# A prepared transaction has no session, and its locks do not name it: all are named.
_HOLDERS = """
    SELECT CASE WHEN holder.pid IS NULL THEN 'prepared transaction ' || (
               SELECT string_agg(gid, ', ' ORDER BY prepared) FROM pg_prepared_xacts WHERE database = current_database()
           )
           ELSE format('session %%s of %%s (%%s), %%s since %%s', session.pid, session.usename,
                       coalesce(nullif(session.application_name, ''), 'unnamed'), session.state, session.xact_start)
           END
    FROM (SELECT DISTINCT virtualtransaction, pid FROM pg_locks WHERE virtualtransaction = ANY(%s::text[])) AS holder
         LEFT JOIN pg_stat_activity AS session USING (pid)
    LIMIT 3
"""


def check_id_assignment() -> None:
    """Raise CommandError if ids of the outbox may be visible in another order than the relay expects."""
    with connection.cursor() as cursor:
        cursor.execute(_SETTINGS)
        cache, increment, cycles, isolation, default, is_identity = cursor.fetchone() or (0, 0, False, "", "", "")
    sequence = "sequence kafka_bridge_outboxmessage_id_seq"
    wrong = [
        *([f"{sequence} has CACHE {cache}: ALTER SEQUENCE ... CACHE 1"] if cache != 1 else []),
        *([f"{sequence} has INCREMENT {increment}: ALTER SEQUENCE ... INCREMENT 1"] if increment != 1 else []),
        *([f"{sequence} cycles: ALTER SEQUENCE ... NO CYCLE"] if cycles else []),
        *(
            [f"default_transaction_isolation is {isolation}: set it to 'read committed'"]
            if isolation != "read committed"
            else []
        ),
        *(
            ["column id of kafka_bridge_outboxmessage has another default than its sequence: restore the identity"]
            if is_identity != "YES" and "kafka_bridge_outboxmessage_id_seq" not in (default or "")
            else []
        ),
    ]
    if wrong:
        raise CommandError("the relay would lose or reorder rows: " + "; ".join(wrong))


class IdWatch:
    """Notices that ids under the position are assigned again, by a look at the sequence once a second.

    A sequence that stands under what was seen was set back. One that was set back a little may have climbed past that
    again before the look: so the last ids under an earlier look are searched for rows that were inserted after it.
    """

    def __init__(self) -> None:
        self._highest = self._last_id = 0
        # Of the last minute: what was sent then, and the database's time.
        self._looks: deque[tuple[int, datetime]] = deque(maxlen=_LOOKS)

    def look(self, positions: Positions) -> None:
        """Hold rows beneath the position to be sent, open an alert, and set the sequence above, if it was set back.

        Raises LeaseLost on another server than that of ``positions``: it may have assigned exactly as many ids.
        """
        with connection.cursor() as cursor:
            cursor.execute(_LOOK)
            ((last_id, now, saved, *session),) = cursor.fetchall()
        positions.check_session(session)
        sent_through = max(saved, positions.unsent.sent_through)
        if last_id < max(sent_through, self._highest):
            positions.save()
            _raise_sequence(max(sent_through, self._highest))
        elif self._looks and last_id != self._last_id:
            for earlier in {self._looks[0], self._looks[-1]}:
                _hold_rows_born_beneath(*earlier)
        self._highest = max(self._highest, last_id)
        self._last_id = last_id
        self._looks.append((positions.unsent.sent_through, now))


def _raise_sequence(above: int) -> None:
    with transaction.atomic(), connection.cursor() as cursor:
        # No insert may take an id while the rows are listed.
        cursor.execute(_STOP_INSERTS)
        last_id = _last_id()
        cursor.execute(_HOLD_ROWS_BENEATH, {"last_id": last_id})
        _open_sequence_alert(
            f"stood at {last_id}, and ids up to {above} were assigned: it is set above", cursor.rowcount
        )
        # Takes effect at once and is not rolled back, hence last.
        cursor.execute(_RAISE, [above])


def _hold_rows_born_beneath(sent_through: int, at: datetime) -> None:
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(_HOLD_ROWS_BORN_BENEATH, {"sent_through": sent_through, "at": at, "ids": _SEARCHED_IDS})
        if cursor.rowcount:
            _open_sequence_alert(f"was set back under {sent_through}", cursor.rowcount)


def _open_sequence_alert(what: str, rows: int) -> None:
    open_alert(SEQUENCE, f"the sequence of outbox ids {what}, and {rows} rows are sent again")


class SettledMarkAlert:
    """The alert that a settled mark does not move, which names the transactions that keep it where it is."""

    def __init__(self) -> None:
        # A relay that died may have left one.
        self._may_be_open = True

    def judge(self, mark: SettledMark) -> None:
        """Open the alert once ``mark`` has stood for 5 minutes; end it when the mark moves."""
        if mark.stands_for >= _STANDS_TOO_LONG:
            self._may_be_open = True
            with connection.cursor() as cursor:
                cursor.execute(_HOLDERS, [sorted(mark.holders)])
                holders = "; ".join(holder for (holder,) in cursor.fetchall() if holder)
            open_alert(
                SETTLED_MARK, f"a transaction that writes the outbox has been open for over 5 minutes: {holders}"
            )
        elif self._may_be_open and mark.stands_for == 0.0:
            clear_alert(SETTLED_MARK)
            self._may_be_open = False


def _last_id() -> int:
    with connection.cursor() as cursor:
        cursor.execute(_LAST_ID)
        (last_id,) = cursor.fetchone() or (0,)
    return int(last_id)
