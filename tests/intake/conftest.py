"""A web process with its site, and both sides of it: the lane behind the public port, the site behind its socket."""

from __future__ import annotations

import resource
import socket
from collections.abc import Iterator
from http.client import HTTPException, HTTPResponse
from typing import NamedTuple

import pytest

from demo.processes import WebProcess, is_ready, wait_until_ready
from devstack.ports import free_port
from tests.support.service import environment

_ANSWER_SECONDS = 20.0


class Answer(NamedTuple):
    """Status, headers by lower-case name (values of repeated ones joined) and body."""

    status: int
    headers: dict[str, str]
    body: bytes


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=30)


def read_answer(connection: socket.socket, method: str) -> Answer:
    """Read one answer. Raises ConnectionError if there is none."""
    response = HTTPResponse(connection, method=method)
    try:
        response.begin()
        body = response.read()
    except HTTPException as error:
        raise ConnectionError(f"no answer: {error!r}") from error
    headers: dict[str, str] = {}
    for name, value in response.getheaders():
        headers[name.lower()] = f"{headers[name.lower()]}, {value}" if name.lower() in headers else value
    return Answer(response.status, headers, body)


class Pair:
    """Sends the bytes of a request to the lane or to the site."""

    def __init__(self, process: WebProcess, port: int) -> None:
        self.process = process
        self.port = port

    def to_lane(self, message: bytes, method: str = "POST") -> Answer:
        with socket.create_connection(("127.0.0.1", self.port), timeout=_ANSWER_SECONDS) as connection:
            connection.sendall(message)
            return read_answer(connection, method)

    def to_site(self, message: bytes, method: str = "POST") -> Answer:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_ANSWER_SECONDS)
            connection.connect(self.process.site_socket)
            connection.sendall(message)
            return read_answer(connection, method)


@pytest.fixture
def many_files() -> Iterator[None]:
    """This process may have as many open sockets as the system allows."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture(scope="package")
def shared_pair(django_db_setup: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    port = free_port()
    process = WebProcess(
        environment(PORT=str(port), HOST="127.0.0.1", WEB_CONCURRENCY="1", AUTH_TOKEN_THROTTLE="10/day"),
        tmp_path_factory.mktemp("web") / "web.log",
    )
    with process:
        yield Pair(process, port)


@pytest.fixture
def pair(transactional_db: None, shared_pair: Pair) -> Iterator[Pair]:
    if not shared_pair.process.is_running():
        shared_pair.process.start()
    if not is_ready(shared_pair.port):
        wait_until_ready(shared_pair.process, shared_pair.port)
    yield shared_pair
    print(f"--- web\n{shared_pair.process.log_tail(40)}\n--- site\n{shared_pair.process.site.log_tail(40)}")
