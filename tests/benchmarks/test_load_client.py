"""The load client of the benchmarks: what it counts when connections break, and from which moment it measures."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from benchmarks.load import BROKEN, Plan, send, status_counts

_REQUEST = b"POST /numbered HTTP/1.1\r\ncontent-length: 0\r\nnumber: %d\r\n\r\n"
_ANSWER = b"HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\nOK"
_PAUSE = 0.05


@contextmanager
def server(answer: Callable[[bytes], bytes]) -> Iterator[int]:
    """Serve on a port of this machine: ``answer`` returns the bytes for a request, none to close the connection."""

    def serve(connection: socket.socket) -> None:
        with connection:
            while request := connection.recv(65_536):
                if not (response := answer(request)):
                    return
                connection.sendall(response)

    def accept() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        accepting = threading.Thread(target=accept, daemon=True)
        accepting.start()
        try:
            yield listening.getsockname()[1]
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            accepting.join()


def requests(count: int) -> list[bytes]:
    return [_REQUEST % number for number in range(count)]


def break_the_third(request: bytes) -> bytes:
    return b"" if b"number: 2\r\n" in request else _ANSWER


def answer_late(request: bytes) -> bytes:
    time.sleep(_PAUSE)
    return _ANSWER


def test_a_broken_connection_ends_the_plan() -> None:
    with server(break_the_third) as port, pytest.raises(ConnectionError, match="closed a connection"):
        send(Plan(port, 1, requests(5)))


@pytest.mark.parametrize("connections", [1, 3])
def test_a_plan_that_reconnects_counts_the_broken_request_and_sends_the_others(connections: int) -> None:
    with server(break_the_third) as port:
        outcome = send(Plan(port, connections, requests(5), reconnect=True))

    assert status_counts(outcome) == {202: 4, BROKEN: 1}
    assert outcome.statuses[2] == BROKEN
    assert outcome.bodies[4] == b"OK"


def test_at_a_constant_rate_a_request_is_late_by_the_time_that_it_waited_for_a_connection() -> None:
    rate = 4 / _PAUSE
    with server(answer_late) as port:
        outcome = send(Plan(port, 1, requests(6), rate))

    for number, (latency, delay) in enumerate(zip(outcome.latencies, outcome.delays, strict=True)):
        # Each request before it took a pause, of which a quarter passed until it was due.
        assert delay >= number * (_PAUSE - 1 / rate) - 0.001
        assert latency - delay >= _PAUSE - 0.001


def test_in_a_closed_loop_the_time_counts_from_the_sending() -> None:
    with server(answer_late) as port:
        outcome = send(Plan(port, 1, requests(3)))

    assert outcome.delays == [0.0] * 3
    assert all(latency >= _PAUSE - 0.001 for latency in outcome.latencies)
