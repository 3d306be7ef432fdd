"""How PostgreSQL assigns outbox ids: what positions rely on, checked at the start and while the relay runs."""

from __future__ import annotations

import logging

from django.core.management.base import CommandError
from django.db import connection, transaction

from ..operating.alerts import end_alert, open_alert
from ..outbox.settled_mark import SettledMark

logger = logging.getLogger(__name__)

_STANDS_TOO_LONG = 300.0
_MARK_RULE = "outbox-settled-mark"
_SEQUENCE_RULE = "outbox-sequence"

_SETTINGS = """
    SELECT cache_size, increment_by, cycle, current_setting('default_transaction_isolation'),
           (SELECT column_default FROM information_schema.columns
            WHERE table_name = 'kafka_bridge_outboxmessage' AND column_name = 'id' AND table_schema = current_schema()),
           (SELECT is_identity FROM information_schema.columns
            WHERE table_name = 'kafka_bridge_outboxmessage' AND column_name = 'id' AND table_schema = current_schema())
    FROM pg_sequences WHERE sequencename = 'kafka_bridge_outboxmessage_id_seq' AND schemaname = current_schema()
"""
_LAST_ID = "SELECT coalesce((SELECT last_value FROM kafka_bridge_outboxmessage_id_seq WHERE is_called), 0)"
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


def raise_sequence(sent_through: int) -> None:
    """Set the sequence of ids above ``sent_through`` if it is behind, as after a restore or ``setval``.

    Rows that got an id at or under it meanwhile would never be read: they are held to be sent, and an alert is opened.
    """
    if _last_id() >= sent_through:
        return
    with transaction.atomic(), connection.cursor() as cursor:
        # No insert may take an id while the rows are listed.
        cursor.execute(_STOP_INSERTS)
        last_id = _last_id()
        cursor.execute(_HOLD_ROWS_BENEATH, {"last_id": last_id})
        rows = cursor.rowcount
        open_alert(
            rule=_SEQUENCE_RULE,
            severity="critical",
            summary=f"the sequence of outbox ids stood at {last_id}, and ids up to {sent_through} were sent: it is set"
            f" above them, and {rows} rows are sent again",
            runbook="docs/operations.md#a-sequence-of-ids-that-was-set-back",
        )
        # Takes effect at once and is not rolled back, hence last.
        cursor.execute(_RAISE, [sent_through])


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
                rule=_MARK_RULE,
                severity="warning",
                summary=f"a transaction that writes the outbox has been open for over 5 minutes: {holders}",
                runbook="docs/operations.md#a-transaction-that-stays-open",
            )
        elif self._may_be_open and mark.stands_for == 0.0:
            end_alert(_MARK_RULE)
            self._may_be_open = False


def _last_id() -> int:
    with connection.cursor() as cursor:
        cursor.execute(_LAST_ID)
        (last_id,) = cursor.fetchone() or (0,)
    return int(last_id)
