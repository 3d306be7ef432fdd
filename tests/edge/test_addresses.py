"""Addresses that are not ``host:port``: sockets by their path, and several servers."""

from __future__ import annotations

import selectors
import socket
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

import pytest
from django.conf import settings
from django.db import connection
from redis import Redis

from orders.models import Product
from tests.support.service import environment, run_command

pytestmark = pytest.mark.django_db(transaction=True)


class Forwarder(socketserver.ThreadingUnixStreamServer):
    """A socket in the file system that leads to a TCP port of this machine."""

    daemon_threads = True

    def __init__(self, path: Path, target: tuple[str, int]) -> None:
        super().__init__(str(path), _Forward)
        self.target = target


class _Forward(socketserver.BaseRequestHandler):
    server: Forwarder

    def handle(self) -> None:
        with socket.create_connection(self.server.target) as target, selectors.DefaultSelector() as ready:
            ready.register(self.request, selectors.EVENT_READ, target)
            ready.register(target, selectors.EVENT_READ, self.request)
            while True:
                for key, _ in ready.select():
                    received = key.fileobj.recv(65536)  # type: ignore[union-attr]
                    if not received:
                        return
                    key.data.sendall(received)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with the sockets of this test's PostgreSQL and Redis. The path of a socket has 107 bytes at the most."""
    database = connection.settings_dict
    redis = Redis.from_url(settings.REDIS_URL).get_connection_kwargs()
    targets = {
        ".s.PGSQL.5432": (database["HOST"], int(database["PORT"])),
        "redis.sock": (redis["host"], int(redis["port"])),
    }
    with TemporaryDirectory(prefix="s") as name:
        servers = [Forwarder(Path(name) / socket_name, target) for socket_name, target in targets.items()]
        for server in servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield Path(name)
        for server in servers:
            server.shutdown()
            server.server_close()


def login() -> str:
    database = connection.settings_dict
    return f"{quote(database['USER'])}:{quote(database['PASSWORD'])}"


@pytest.mark.parametrize("shape", ["{login}@{quoted}/{name}", "{login}@/{name}?host={folder}"])
def test_a_database_is_reached_by_the_folder_of_its_socket(shape: str, folder: Path) -> None:
    name = connection.settings_dict["NAME"]
    url = "postgres://" + shape.format(login=login(), quoted=quote(str(folder), safe=""), folder=folder, name=name)
    ended = run_command("create_product", "Socks", "--price", "1", env=environment(DATABASE_URL=url))
    assert ended.returncode == 0, ended.stderr
    assert Product.objects.count() == 1


def test_of_several_database_servers_the_one_that_answers_is_taken() -> None:
    database = connection.settings_dict
    # Nothing listens on the discard port.
    url = f"postgres://{login()}@127.0.0.1:9,{database['HOST']}:{database['PORT']}/{database['NAME']}"
    ended = run_command("create_product", "Socks", "--price", "1", env=environment(DATABASE_URL=url))
    assert ended.returncode == 0, ended.stderr
    assert Product.objects.count() == 1


def test_redis_is_reached_by_its_socket_and_the_number_counts(folder: Path, redis_flushed: None) -> None:
    number = int(Redis.from_url(settings.REDIS_URL).get_connection_kwargs().get("db") or 0)
    marked = Redis.from_url(settings.REDIS_URL)
    url = f"unix://{folder}/redis.sock?db={number}"
    ended = run_command("rebuild_views", env=environment(REDIS_URL=url))
    assert ended.returncode == 0, ended.stderr
    assert marked.dbsize() > 0


def test_a_database_that_redis_lacks_is_named_through_its_socket_too(folder: Path) -> None:
    ended = run_command("check", env=environment(REDIS_URL=f"unix://{folder}/redis.sock?db=9999"))
    assert (ended.returncode, ended.stderr.partition(":")[0]) == (1, "REDIS_URL")
