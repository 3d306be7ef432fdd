"""Which errors are the fault of a service that is away: wait and try again, without limit."""

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


# lock_not_available, query_canceled (by statement_timeout).
_LIMIT_SQLSTATES = frozenset({"55P03", "57014"})


# read_only_sql_transaction: a primary that became a standby. Comes as InternalError.
# serialization_failure, deadlock_detected: come as OperationalError, named for their own sake.
_TRANSIENT_SQLSTATES = frozenset({"25006", "25P03", "40001", "40P01"}) | _LIMIT_SQLSTATES


# Classes: connection exception, insufficient resources, operator intervention, system error.
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


# The client has no class for the others; and of what a script met Redis 6 tells behind other words.
_TRANSIENT_OF_REDIS = re.compile(r"(?:^|-)(?:READONLY|OOM|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|MISCONF|NOREPLICAS|BUSY) ")


def is_transient(error: BaseException) -> bool:
    """Whether ``error`` is the fault of a service rather than of the message: try again without limit."""
    return any(_is_transient_link(link) for link in _chain(error))


def is_database_outage(error: BaseException) -> bool:
    """Whether ``error`` is transient and PostgreSQL's."""
    return is_transient(error) and any(isinstance(link, DatabaseError) for link in _chain(error))


def _is_transient_link(error: BaseException) -> bool:
    sqlstate = getattr(error, "pgcode", None) or ""
    if sqlstate:
        return sqlstate in _TRANSIENT_SQLSTATES or sqlstate[:2] in _TRANSIENT_SQLSTATE_CLASSES
    # Django's wrapper knows no SQLSTATE: the driver's error behind it decides where it has one.
    if isinstance(error, DatabaseError) and getattr(error.__cause__, "pgcode", None):
        return False
    if isinstance(error, redis.exceptions.ResponseError) and _TRANSIENT_OF_REDIS.search(str(error)):
        return True
    return isinstance(error, _TRANSIENT)


def is_rolled_back(error: BaseException) -> bool:
    """Whether PostgreSQL itself answered with an error, also to a commit: nothing of the transaction was done.

    A session that the server or a pooler ended (FATAL, PANIC) does not count: its commit may have come through.
    """
    severities = (getattr(getattr(link, "diag", None), "severity_nonlocalized", None) for link in _chain(error))
    return "ERROR" in severities


def is_over_limit(error: BaseException) -> bool:
    """Whether a statement or its wait for a lock took longer than PostgreSQL was to allow it."""
    return any(getattr(link, "pgcode", None) in _LIMIT_SQLSTATES for link in _chain(error))


def is_outcome_unknown(error: BaseException) -> bool:
    """Whether nobody knows if a commit happened."""
    return any(isinstance(link, OutcomeUnknown) for link in _chain(error))


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__
