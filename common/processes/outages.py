"""Classification of errors: which ones mean an outage of a service, to be retried without limit."""

from __future__ import annotations

import re
from collections.abc import Iterator

import psycopg2
import redis.exceptions
from django.db import InterfaceError, OperationalError
from django.db.utils import Error as DatabaseError


class ServiceUnavailable(Exception):
    """A service that the process needs does not answer."""


class BadRedisDatabase(Exception):
    """REDIS_URL names a database that its server does not have."""


class OutcomeUnknown(psycopg2.OperationalError):  # type: ignore[misc]
    """PostgreSQL did not confirm a commit: the transaction may have been committed or not."""


# 55P03 lock_not_available, 57014 query_canceled (by statement_timeout).
_LIMIT_SQLSTATES = frozenset({"55P03", "57014"})
# 40001 serialization_failure, 40P01 deadlock_detected: raised as OperationalError, listed to be explicit.
_CONTENTION_SQLSTATES = frozenset({"40001", "40P01"}) | _LIMIT_SQLSTATES
# 25006 read_only_sql_transaction: a primary that became a standby; raised as InternalError.
# 25P03 idle_in_transaction_session_timeout.
_TRANSIENT_SQLSTATES = frozenset({"25006", "25P03"}) | _CONTENTION_SQLSTATES
# Classes 08 connection exception, 53 insufficient resources, 57 operator intervention, 58 system error.
_TRANSIENT_SQLSTATE_CLASSES = frozenset({"08", "53", "57", "58"})
_TRANSIENT = (
    OperationalError,
    InterfaceError,
    redis.exceptions.ConnectionError,  # LOADING is a subclass
    redis.exceptions.TimeoutError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.OutOfMemoryError,
    redis.exceptions.MasterDownError,
    redis.exceptions.ClusterDownError,
    redis.exceptions.TryAgainError,
    ServiceUnavailable,
)
# Error codes without an exception class in redis-py. Redis 6 puts other words before the code of an error in a script.
_TRANSIENT_OF_REDIS = re.compile(r"(?:^|-)(?:READONLY|OOM|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|MISCONF|NOREPLICAS|BUSY) ")


def is_transient(error: BaseException) -> bool:
    """Whether ``error`` is an outage of a service, not a fault of the message: retry without limit."""
    return any(_is_transient_link(link) for link in _chain(error))


def is_database_outage(error: BaseException) -> bool:
    """Whether ``error`` is an outage of PostgreSQL."""
    return is_transient(error) and any(isinstance(link, DatabaseError) for link in _chain(error))


def _is_transient_link(error: BaseException) -> bool:
    sqlstate = getattr(error, "pgcode", None) or ""
    if sqlstate:
        return sqlstate in _TRANSIENT_SQLSTATES or sqlstate[:2] in _TRANSIENT_SQLSTATE_CLASSES
    # Django's wrapper has no SQLSTATE: if the driver's error behind it has one, that link decides.
    if isinstance(error, DatabaseError) and getattr(error.__cause__, "pgcode", None):
        return False
    # psycopg2 raises its base class, without a SQLSTATE, for some sessions that a crash of the server ended.
    if type(error) is psycopg2.DatabaseError:
        return True
    if isinstance(error, redis.exceptions.ResponseError) and _TRANSIENT_OF_REDIS.search(str(error)):
        return True
    return isinstance(error, _TRANSIENT)


def is_rolled_back(error: BaseException) -> bool:
    """Whether PostgreSQL answered with severity ERROR, also to a commit: the transaction is rolled back.

    False for a session that the server or a pooler ended (FATAL, PANIC): its commit may have succeeded.
    """
    severities = (getattr(getattr(link, "diag", None), "severity_nonlocalized", None) for link in _chain(error))
    return "ERROR" in severities


def is_over_limit(error: BaseException) -> bool:
    """Whether a statement or a lock wait exceeded its timeout in PostgreSQL."""
    return any(getattr(link, "pgcode", None) in _LIMIT_SQLSTATES for link in _chain(error))


def is_contention(error: BaseException) -> bool:
    """Whether a transaction gave way to other sessions: past a limit, in a deadlock, or as not serializable.

    PostgreSQL is there: the same transaction can be repeated in the same session.
    """
    return any(getattr(link, "pgcode", None) in _CONTENTION_SQLSTATES for link in _chain(error))


def is_outcome_unknown(error: BaseException) -> bool:
    """Whether the outcome of a commit is unknown."""
    return any(isinstance(link, OutcomeUnknown) for link in _chain(error))


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__
