"""The one way to Redis: pooled connections that leave a server which is no longer the primary.

Behind an address that keeps connections open a failover closes nothing: a demoted server goes on answering on the same
connection, writes with READONLY and reads with what it last heard. A refusal that comes of a server's role closes the
connection, and the call is made once more on a new one, wherever the address leads by then. A connection that only
reads meets no refusal: it asks for the role when it leaves the pool, at most every ``ROLE_SECONDS``.
"""

from __future__ import annotations

import re
import time
from typing import Any

from django_redis import get_redis_connection
from redis.connection import AbstractConnection, Connection, ConnectionPool, SSLConnection, UnixDomainSocketConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import MasterDownError, ReadOnlyError, ResponseError

ROLE_SECONDS = 5.0

# What a command within a script met Redis 6 says behind other words. NOREPLICAS comes from a primary that lost its
# replicas: on the wrong side of a network split, another one has taken its place.
_REFUSED_BY_ROLE = re.compile(r"(?:^|-)(?:READONLY|MASTERDOWN|NOREPLICAS) ")


class NotPrimary(RedisConnectionError):
    """The server at the other end takes no writes by its role; the connection is closed."""


class _LeavesReplicas(AbstractConnection):
    """A connection that is closed once its server turns out to be a replica."""

    _role_known_at = 0.0

    def connect(self) -> None:
        """Connect, or leave a server that became a replica. The pool calls this whenever it hands out a connection."""
        if not self.is_connected or time.monotonic() - self._role_known_at > ROLE_SECONDS:
            if self.is_connected and self._is_replica():
                self._close()
            self._role_known_at = time.monotonic()
        super().connect()  # type: ignore[no-untyped-call]

    def read_response(self, *args: Any, **options: Any) -> Any:
        """A reply. Raises NotPrimary instead of a refusal that comes of the server's role."""
        try:
            return super().read_response(*args, **options)
        except ResponseError as error:
            if not _is_refusal_by_role(error):
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
            # Closed by now, and made anew.
            return True
        except ResponseError:
            # A user or a proxy that may not ask: its writes will tell.
            return False
        return isinstance(role, list) and role[:1] in ([b"slave"], ["slave"])


class _Tcp(_LeavesReplicas, Connection):
    pass


class _Tls(_LeavesReplicas, SSLConnection):
    pass


class _Unix(_LeavesReplicas, UnixDomainSocketConnection):
    pass


_CLASSES: dict[Any, Any] = {
    Connection: _Tcp,
    SSLConnection: _Tls,
    UnixDomainSocketConnection: _Unix,
}


class Pool(ConnectionPool):
    """The ``CONNECTION_POOL_CLASS`` of the settings."""

    def __init__(self, connection_class: type[AbstractConnection] = Connection, **options: Any) -> None:
        super().__init__(connection_class=_CLASSES[connection_class], **options)


def redis_connection() -> Any:
    """A client on the pool that this process shares. Its calls raise RedisError."""
    return get_redis_connection("default")


def _is_refusal_by_role(error: ResponseError) -> bool:
    return isinstance(error, ReadOnlyError | MasterDownError) or bool(_REFUSED_BY_ROLE.search(str(error)))
