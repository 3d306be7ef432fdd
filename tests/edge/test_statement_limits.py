"""Limits travel with the first statement of a transaction, and with each one outside, and end with it."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from typing import Any

import psycopg2
import pytest
from django.db import connection
from psycopg2 import sql

from common.processes.outages import is_over_limit, is_rolled_back, is_transient
from couponsite.database import STATEMENT_LIMITS

pytestmark = pytest.mark.django_db(transaction=True)

_LIMITS = "SELECT current_setting('statement_timeout'), current_setting('lock_timeout')"
_LIMITED, _UNLIMITED = ("5s", "2s"), ("0", "0")


@pytest.fixture
def session(transactional_db: None) -> Iterator[Any]:
    """A session of the web process."""
    session = connection.get_new_connection(connection.get_connection_params())
    session.before_statement = STATEMENT_LIMITS
    session.before_transaction += STATEMENT_LIMITS
    yield session
    session.close()


def rows(session: Any, query: Any, *parameters: Any) -> Any:
    with session.cursor() as cursor:
        cursor.execute(query, parameters or None)
        return cursor.fetchall()


@pytest.mark.parametrize("autocommit", [False, True])
def test_the_first_statement_has_its_limits_and_its_own_result(session: Any, autocommit: bool) -> None:
    session.autocommit = autocommit
    assert rows(session, _LIMITS) == [_LIMITED]
    assert rows(session, sql.SQL(_LIMITS)) == [_LIMITED]
    assert rows(session, "SELECT %s || '%%'", "100") == [("100%",)]
    if not autocommit:
        session.commit()
    with session.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE limited (n int)")
        if not autocommit:
            session.commit()
        cursor.execute("INSERT INTO limited SELECT generate_series(1, 3) RETURNING n")
        assert (cursor.rowcount, cursor.fetchall()) == (3, [(1,), (2,), (3,)])


def test_a_transaction_keeps_its_limits_and_the_session_keeps_none(session: Any) -> None:
    assert rows(session, "SELECT 1") == [(1,)]
    assert rows(session, _LIMITS) == [_LIMITED]
    assert rows(session, "SHOW idle_in_transaction_session_timeout") == [("1min",)]
    session.commit()
    session.before_transaction = ""
    assert rows(session, _LIMITS) == [_UNLIMITED]
    assert rows(session, "SHOW idle_in_transaction_session_timeout") == [("0",)]


def test_a_transaction_that_begins_with_a_named_cursor_has_its_limits(session: Any) -> None:
    with session.cursor("named") as cursor:
        cursor.execute(_LIMITS)
        assert cursor.fetchall() == [_LIMITED]


def test_a_transaction_that_begins_with_a_copy_has_its_limits(session: Any) -> None:
    with session.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE copied (n int)")
        session.commit()
        cursor.copy_expert("COPY copied FROM STDIN", BytesIO(b"1\n2\n"))
    assert rows(session, "SHOW lock_timeout") == [("2s",)]
    assert rows(session, "SELECT n FROM copied ORDER BY n") == [(1,), (2,)]


@pytest.mark.parametrize("autocommit", [False, True])
def test_a_statement_past_its_limit_is_rolled_back_for_certain(session: Any, autocommit: bool) -> None:
    session.autocommit = autocommit
    session.before_statement = session.before_transaction = "SET LOCAL statement_timeout = 20; "
    with pytest.raises(psycopg2.OperationalError) as caught:
        rows(session, "SELECT pg_sleep(10)")
    assert caught.value.pgcode == "57014"
    assert is_transient(caught.value)
    assert is_over_limit(caught.value)
    assert is_rolled_back(caught.value)


def test_a_session_that_ended_is_no_certain_rollback(session: Any) -> None:
    with pytest.raises(psycopg2.OperationalError) as caught:
        rows(session, "SELECT pg_terminate_backend(pg_backend_pid())")
    assert not is_rolled_back(caught.value)
    assert not is_over_limit(caught.value)
