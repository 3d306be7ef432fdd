"""Two Redis servers, one the other's replica, behind an address that keeps connections open at a failover."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path

from redis import Redis

from devstack import Part, wait_until

from .forwarder import Forwarder
from .own_redis import redis_server


@contextmanager
def two_servers(folder: Path) -> Iterator[list[Part]]:
    """Two Redis servers that only the caller uses."""
    with ExitStack() as servers:
        yield [servers.enter_context(redis_server(name, folder / name)) for name in ("redis-a", "redis-b")]


@contextmanager
def replicated(parts: list[Part]) -> Iterator[Pair]:
    """Both servers empty, the second the replica of the first, and the address of the first."""
    primary, replica = (part.port for part in parts)
    replicate(primary, None)
    with closing(Redis(port=primary)) as server:
        server.flushall()
    replicate(replica, primary)
    wait_until(partial(_is_in_sync, replica), 20, "the replica does not follow")
    with Forwarder(primary) as address:
        yield Pair(primary, replica, address)


class Pair:
    """A primary with its replica, and the address of the primary."""

    def __init__(self, primary: int, replica: int, address: Forwarder) -> None:
        self.primary, self.replica, self.address = primary, replica, address

    def promote(self) -> None:
        """The replica becomes the primary and the primary its replica; the address still leads to the latter."""
        replicate(self.replica, None)
        replicate(self.primary, self.replica)

    def fail_over(self) -> None:
        self.promote()
        self.address.point_at(self.replica)


def replicate(port: int, of: int | None) -> None:
    with closing(Redis(port=port)) as server:
        if of is None:
            server.replicaof("NO", "ONE")
        else:
            server.replicaof("127.0.0.1", str(of))


def _is_in_sync(port: int) -> bool:
    with closing(Redis(port=port)) as server:
        return bool(server.info("replication").get("master_link_status") == "up")
