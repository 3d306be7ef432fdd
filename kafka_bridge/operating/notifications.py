"""Notifications of alerts: posted to ``ALERT_WEBHOOK_URL``, kept in PostgreSQL until they are accepted.

Any number of processes may send: a row is claimed for the time of its call.
"""

from __future__ import annotations

import json
import logging
import time
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from django.conf import settings
from django.db import connection
from uuid_utils.compat import uuid7

from common.http_client import CannotBeCalled, NoAnswer, post_and_wait
from common.postgres.clock import isoformat_z
from common.processes.log_limit import LogLimit
from common.throttling import retry_after
from common.trace_context import new_traceparent, traceparent_in

from .. import metrics
from ..models import Alert, AlertNotification, AlertSilence
from .alert_test import record_delivery

logger = logging.getLogger(__name__)

# Of one call to the webhook or the dead man's switch.
TIMEOUT_SECONDS = 3.0
# A claimed row is due again after so long: its sender has died. Longer than a call takes.
CLAIM_SECONDS = 6.0
# Between two tries of a notification; doubled up to the last. A longer Retry-After of the webhook is honoured.
FIRST_PAUSE_SECONDS = 5.0
LAST_PAUSE_SECONDS = 60.0
LONGEST_RETRY_AFTER_SECONDS = 300.0
# Without a webhook rows are kept no longer, so that one that is configured later gets no old ones.
UNSENT_SECONDS = 600.0
_LONGEST_TEXT = 1000

_ALERTS, _NOTIFICATIONS, _SILENCES = (model._meta.db_table for model in (Alert, AlertNotification, AlertSilence))
# A silence of a rule's name is one of all its subjects. An alert's runbook tells its rule, see ``AlertRule``: the rules
# of other processes are not registered in this one, and the beginning of a subject may be another subject.
_IS_SILENCED_BY = "(silence.rule = alert.rule OR alert.runbook = 'docs/runbooks/' || silence.rule || '.md')"
# First alerts are dropped that began and ended within a silence; where the beginning was sent all the same, just
# before, the end stays. Of the others, an end is not due before its beginning is accepted.
_CLAIM = f"""
    WITH dropped AS (
        DELETE FROM {_NOTIFICATIONS} AS notification USING {_ALERTS} AS alert, {_SILENCES} AS silence
        WHERE alert.id = notification.alert_id AND {_IS_SILENCED_BY}
          AND alert.started_at >= silence.created_at AND alert.ended_at <= silence.until
          AND EXISTS (
              SELECT FROM {_NOTIFICATIONS} AS start WHERE start.alert_id = alert.id AND start.phase = 'start'
          )
        RETURNING notification.id
    ), due AS (
        SELECT notification.id FROM {_NOTIFICATIONS} AS notification JOIN {_ALERTS} AS alert ON alert.id = alert_id
        WHERE next_try_at <= statement_timestamp() AND notification.id NOT IN (SELECT id FROM dropped)
          AND (phase = 'start' OR NOT EXISTS (
              SELECT FROM {_NOTIFICATIONS} AS start WHERE start.alert_id = alert.id AND start.phase = 'start'
          ))
          -- The end of an alert whose beginning was accepted is sent also within a silence: it opens nothing.
          AND (phase = 'end' OR NOT EXISTS (
              SELECT FROM {_SILENCES} AS silence WHERE {_IS_SILENCED_BY} AND silence.until > statement_timestamp()
          ))
        ORDER BY next_try_at, notification.id LIMIT 1
        FOR UPDATE OF notification SKIP LOCKED
    )
    UPDATE {_NOTIFICATIONS} AS notification
    SET attempts = attempts + 1, next_try_at = statement_timestamp() + %s * interval '1 second'
    FROM due, {_ALERTS} AS alert WHERE notification.id = due.id AND alert.id = notification.alert_id
    RETURNING notification.id, phase, attempts, alert.id, rule, severity, summary, runbook, started_at, ended_at
"""
_DROP_UNSENT = f"""
    DELETE FROM {_NOTIFICATIONS}
    WHERE created_at < statement_timestamp() - %s * interval '1 second'
      -- Another process has a webhook, and sends it.
      AND attempts = 0
"""
_ACCEPTED = f"DELETE FROM {_NOTIFICATIONS} WHERE id = %s"
_FAILED = f"""
    UPDATE {_NOTIFICATIONS} SET next_try_at = statement_timestamp() + %s * interval '1 second', last_error = %s
    WHERE id = %s
"""

# By reason: at most one line a minute.
_log_limit = LogLimit(60.0)


class _Notification(NamedTuple):
    id: int
    phase: str
    attempts: int
    alert_id: UUID
    rule: str
    severity: str
    summary: str
    runbook: str
    started_at: datetime
    ended_at: datetime | None

    @property
    def key(self) -> str:
        return f"{self.alert_id}:{self.phase}"

    @property
    def is_end(self) -> bool:
        return self.phase == AlertNotification.Phase.END

    def body(self) -> dict[str, Any]:
        """The body of the call: ``endedAt`` is null at the beginning, also if the alert has ended since."""
        return {
            "rule": self.rule,
            "severity": self.severity,
            "summary": self.summary,
            "startedAt": isoformat_z(self.started_at),
            "endedAt": isoformat_z(self.ended_at) if self.is_end and self.ended_at else None,
            "runbook": self.runbook,
            "text": self.text(),
        }

    def text(self) -> str:
        """One line for chat webhooks."""
        environment = f"[{settings.ENVIRONMENT_NAME}] " if settings.ENVIRONMENT_NAME else ""
        summary = " ".join(self.summary.split())
        if self.is_end and self.ended_at:
            lasted = _duration((self.ended_at - self.started_at).total_seconds())
            line = f"{environment}ended after {lasted}: {self.rule}: {summary}"
        else:
            line = f"{environment}{self.severity}: {self.rule}: {summary}"
        room = _LONGEST_TEXT - len(self.runbook) - len(" (see )")
        return f"{line if len(line) <= room else f'{line[: room - 3]}...'} (see {self.runbook})"


def send_next() -> bool:
    """Send the notification that is due longest; returns whether there was one.

    Without ``ALERT_WEBHOOK_URL`` nothing is sent, and rows older than ten minutes are deleted. Must not be called
    within a transaction. Raises what the database raises.
    """
    with connection.cursor() as cursor:
        if not settings.ALERT_WEBHOOK_URL:
            cursor.execute(_DROP_UNSENT, [UNSENT_SECONDS])
            return False
        cursor.execute(_CLAIM, [CLAIM_SECONDS])
        claimed = [_Notification(*row) for row in cursor.fetchall()]
    for notification in claimed:
        failure = _post(notification)
        with connection.cursor() as cursor:
            if failure is None:
                cursor.execute(_ACCEPTED, [notification.id])
            else:
                cursor.execute(_FAILED, [failure.pause, failure.why, notification.id])
        if failure is None and not notification.is_end:
            record_delivery(notification.rule)
    return bool(claimed)


def call_deadman() -> bool:
    """Call ``ALERT_DEADMAN_URL`` once; returns whether it answered 2xx."""
    headers = {"Idempotency-Key": str(uuid7()), "traceparent": new_traceparent()}
    failure = _call(settings.ALERT_DEADMAN_URL, {}, headers)
    if failure is not None and _log_limit.due("deadman"):
        logger.warning("the dead man's switch was not reached (%s): check ALERT_DEADMAN_URL", failure.why)
    return failure is None


class _Failure(NamedTuple):
    why: str
    # In seconds, how long the service asks to wait; 0 if it does not.
    pause: float = 0.0


def _post(notification: _Notification) -> _Failure | None:
    """Post a notification; returns None once it is accepted, else why not and the pause before the next try."""
    headers = {"Idempotency-Key": notification.key, "traceparent": traceparent_in(notification.alert_id)}
    failure = _call(settings.ALERT_WEBHOOK_URL, notification.body(), headers)
    metrics.ALERT_NOTIFICATIONS.labels("accepted" if failure is None else "failed").inc()
    if failure is None:
        logger.info("the webhook was notified of the %s of alert %s", notification.phase, notification.rule)
        return None
    pause = max(min(FIRST_PAUSE_SECONDS * 2 ** min(notification.attempts - 1, 10), LAST_PAUSE_SECONDS), failure.pause)
    if _log_limit.due(("webhook", failure.why)):
        logger.warning(
            "the webhook was not notified of the %s of alert %s (%s), next try in %.0f s: check ALERT_WEBHOOK_URL",
            notification.phase, notification.rule, failure.why, pause,
        )  # fmt: skip
    return failure._replace(pause=pause)


def _call(url: str, body: dict[str, Any], headers: dict[str, str]) -> _Failure | None:
    # URLs of webhooks are secrets: they are neither logged nor stored.
    try:
        response = post_and_wait(
            url, json.dumps(body).encode(), {**headers, "content-type": "application/json"}, TIMEOUT_SECONDS
        )
    except (NoAnswer, CannotBeCalled) as error:
        return _Failure(str(error))
    if response.is_success:
        return None
    asked = retry_after(response.headers.get("Retry-After"), now=time.time()) or 0.0
    return _Failure(f"answered {response.status_code}", min(asked, LONGEST_RETRY_AFTER_SECONDS))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
