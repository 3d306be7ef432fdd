"""The Redis client: pooled connections that are closed when their server is no longer the primary.

Behind a proxy address a failover may close no connection: a demoted server keeps answering on it, writes with READONLY
and reads with stale data. An error caused by the server's role closes the connection, and the call is retried once on a
new connection, which leads to the new primary. A connection that only reads gets no such error: it asks for the role
when it is taken from the pool, at most every ``ROLE_SECONDS``.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

from django_redis import get_redis_connection
from redis.connection import AbstractConnection, Connection, ConnectionPool, SSLConnection, UnixDomainSocketConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import MasterDownError, ReadOnlyError, ResponseError

ROLE_SECONDS = 5.0
_SCAN_COUNT = 1000

# Redis 6 puts other words before the code of an error in a script. NOREPLICAS comes from a primary that lost its
# replicas: it may be on the minority side of a network split, with another primary elected.
_ROLE_ERROR = re.compile(r"(?:^|-)(?:READONLY|MASTERDOWN|NOREPLICAS) ")


class NotPrimary(RedisConnectionError):
    """The server is a replica, or a primary cut off from its replicas; the connection is closed."""


class _PrimaryConnection(AbstractConnection):
    """A connection that is closed when its server is found to be a replica."""

    _role_known_at = 0.0

    def connect(self) -> None:
        """Connect, or reconnect if the server became a replica. The pool calls it before it hands out a connection."""
        if not self.is_connected or time.monotonic() - self._role_known_at > ROLE_SECONDS:
            if self.is_connected and self._is_replica():
                self._close()
            self._role_known_at = time.monotonic()
        super().connect()  # type: ignore[no-untyped-call]

    def read_response(self, *args: Any, **options: Any) -> Any:
        """Read a reply. Raises NotPrimary for an error that is caused by the server's role."""
        try:
            return super().read_response(*args, **options)
        except ResponseError as error:
            if not _is_role_error(error):
                raise
            self._close()
            raise NotPrimary(str(error)) from error

    def _close(self) -> None:
        self.disconnect()  # type: ignore[no-untyped-call]

    def _is_replica(self) -> bool:
        try:
            self.send_command("ROLE", check_health=False)  # type: ignore[no-untyped-call]
            role = super().read_response()
        except RedisConnectionError:
            # The connection is broken: close it and reconnect, as for a replica.
            return True
        except ResponseError:
            # This user or proxy may not run ROLE: a READONLY error of a write shows it instead.
            return False
        return isinstance(role, list) and role[:1] in ([b"slave"], ["slave"])


class _Tcp(_PrimaryConnection, Connection):
    pass


class _Tls(_PrimaryConnection, SSLConnection):
    pass


class _Unix(_PrimaryConnection, UnixDomainSocketConnection):
    pass


_CLASSES: dict[Any, Any] = {
    Connection: _Tcp,
    SSLConnection: _Tls,
    UnixDomainSocketConnection: _Unix,
}


class Pool(ConnectionPool):
    """The ``CONNECTION_POOL_CLASS`` of the settings: a pool of connections that leave replicas."""

    def __init__(self, connection_class: type[AbstractConnection] = Connection, **options: Any) -> None:
        super().__init__(connection_class=_CLASSES[connection_class], **options)


def redis_connection() -> Any:
    """Return a client on the connection pool of this process. Its calls raise RedisError."""
    return get_redis_connection("default")


class KeyScan:
    """A scan of all keys of Redis for those that match ``pattern``; each step continues where the last one stopped."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._cursor = 0

    def step(self, calls: int | None) -> Iterator[list[bytes]]:
        """Yield keys; makes at most ``calls`` calls, None: until the scan is complete. Raises RedisError."""
        while calls is None or calls > 0:
            self._cursor, names = redis_connection().scan(self._cursor, match=self._pattern, count=_SCAN_COUNT)
            if names:
                yield names
            if not self._cursor:
                return
            calls = None if calls is None else calls - 1


def _is_role_error(error: ResponseError) -> bool:
    return isinstance(error, ReadOnlyError | MasterDownError) or bool(_ROLE_ERROR.search(str(error)))
