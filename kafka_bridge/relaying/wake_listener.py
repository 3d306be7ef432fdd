"""The relay's wait between two polls, cut short by the NOTIFY of a process that committed outbox rows."""

from __future__ import annotations

import logging
import select
import time
from contextlib import suppress
from typing import Any

from django.db import connection

from common.processes.lifecycle import StopFlag, first_line

from ..outbox.wake import CHANNEL, HELD_CHANNEL

logger = logging.getLogger(__name__)

# The longest wait for the socket before the StopFlag is read again: a signal sets it, but does not end the wait.
_SLICE_SECONDS = 0.1


class _Channels(set[str]):
    """The channels of the notifications that arrived; psycopg2 appends each. A busy relay may not wait for long."""

    def append(self, notification: Any) -> None:
        self.add(notification.channel)


class WakeListener:
    """Listens on the database session of this thread, which is in no transaction then."""

    def __init__(self) -> None:
        self._session: Any = None

    def wait(self, seconds: float, stop: StopFlag) -> bool:
        """Wait up to ``seconds``, until ``stop`` or a NOTIFY; one that came since the last wait ends this one at once.

        Returns whether held rows are to be looked at, see ``outbox.wake.look_at_held_rows``. With a new session it only
        starts to listen, since the NOTIFY of earlier commits did not reach that session. Raises nothing: a lost session
        makes the wait short, and the caller's next query reports it.
        """
        session = connection.connection
        try:
            if session is None or session.closed:
                stop.wait(min(seconds, _SLICE_SECONDS))
            elif session is not self._session:
                self._session = session
                self._listen()
            else:
                return HELD_CHANNEL in _wait_for_notify(session, time.monotonic() + seconds, stop)
        except Exception as error:
            logger.warning("relay not woken by commits, it polls: %s", first_line(error))
            stop.wait(min(seconds, _SLICE_SECONDS))
        return False

    def close(self) -> None:
        """Stop listening, for a thread that uses its session afterwards. Raises nothing."""
        if self._session is not None and self._session is connection.connection:
            with suppress(Exception), connection.cursor() as cursor:
                cursor.execute(f"UNLISTEN {CHANNEL}; UNLISTEN {HELD_CHANNEL}")
        self._session = None

    def _listen(self) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"LISTEN {CHANNEL}; LISTEN {HELD_CHANNEL}")
        self._session.notifies = _Channels()


def _wait_for_notify(session: Any, deadline: float, stop: StopFlag) -> set[str]:
    readable = select.poll()
    readable.register(session.fileno(), select.POLLIN)
    while not stop:
        session.poll()
        remaining = deadline - time.monotonic()
        if session.notifies or remaining <= 0:
            break
        readable.poll(min(remaining, _SLICE_SECONDS) * 1000)
    arrived = set(session.notifies)
    session.notifies.clear()
    return arrived
