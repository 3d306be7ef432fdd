"""An idle session that a crash of PostgreSQL ended: its next statement is an outage, whatever psycopg2 says."""

from __future__ import annotations

import select
import socket
import struct
import threading
from typing import Self

import pytest
from django.db import DatabaseError, connection

from common.processes.outages import is_database_outage, is_transient

pytestmark = pytest.mark.django_db(transaction=True)

# What each session is told when another one crashes.
_FIELDS = b"SWARNING\0VWARNING\0C57P02\0Mterminating connection because of crash of another server process\0\0"
_NOTICE = b"N" + struct.pack("!i", len(_FIELDS) + 4) + _FIELDS
_RESET_AT_CLOSE = struct.pack("ii", 1, 0)


class CrashingServer:
    """Leads one session to the server on ``target``. ``crash`` does what a crash and a later keepalive do to it."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._crashing = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.crash()
        self._listener.close()

    def crash(self) -> None:
        self._crashing.set()
        self._thread.join(10)

    def _serve(self) -> None:
        client, _ = self._listener.accept()
        with client, socket.create_connection(("127.0.0.1", self._target)) as server:
            while not self._crashing.is_set():
                for readable in select.select([client, server], [], [], 0.02)[0]:
                    (server if readable is client else client).sendall(readable.recv(65536))
            client.sendall(_NOTICE)
            client.shutdown(socket.SHUT_WR)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)


def test_the_next_statement_of_a_session_that_a_crash_ended_is_an_outage() -> None:
    session = connection.copy()
    with CrashingServer(int(session.settings_dict["PORT"])) as server:
        session.settings_dict = {**session.settings_dict, "HOST": "127.0.0.1", "PORT": server.port}
        with session.cursor() as cursor:
            cursor.execute("SELECT 1")
        server.crash()
        with pytest.raises(DatabaseError) as raised, session.cursor() as cursor:
            cursor.execute("SELECT 1")
    session.close()
    # Not an OperationalError, which is what psycopg2 raises for most ended sessions.
    assert type(raised.value) is DatabaseError
    assert is_transient(raised.value)
    assert is_database_outage(raised.value)


def test_an_error_of_the_orm_itself_is_no_outage() -> None:
    assert not is_transient(DatabaseError("Save with update_fields did not affect any rows."))
