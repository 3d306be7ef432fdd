"""The load client as a process: ``python -m benchmarks.load PLAN OUTCOME`` sends the requests of a plan file.

One thread on epoll and plain sockets: an event loop with streams costs more CPU per request than the service does, and
would measure itself.
"""

from __future__ import annotations

import gc
import re
import resource
import select
import socket
import sys
import time
from collections import Counter, deque
from pathlib import Path

import msgspec

_ANSWER_SECONDS = 30.0
_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
_CHUNK = 65_536


class Plan(msgspec.Struct):
    """Encoded requests to a server on this machine.

    ``rate`` None is a closed loop: every connection sends its next request after its answer. Otherwise so many requests
    are due per second, whether or not earlier ones were answered; those that find no free connection wait for one.
    """

    port: int
    connections: int
    messages: list[bytes]
    rate: float | None = None


class Outcome(msgspec.Struct):
    """The answers to a plan; durations in seconds. The lists are in the order of the plan's messages.

    ``started`` is the wall clock at the first request. ``latencies`` count from the moment a request was due, in a
    closed loop from its sending. ``cpu`` is the client's own CPU time.
    """

    started: float
    seconds: float
    latencies: list[float]
    bodies: list[bytes]
    statuses: list[int]
    cpu: float


class _Connection:
    __slots__ = ("data", "due", "number", "socket")

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.data = b""
        self.number = 0
        self.due = 0.0


def send(plan: Plan) -> Outcome:
    """Send every message once.

    Raises ConnectionError if a connection breaks, and TimeoutError if no answer comes for 30 s.
    """
    count = len(plan.messages)
    outcome = Outcome(0.0, 0.0, [0.0] * count, [b""] * count, [0] * count, 0.0)
    connections = [_Connection(plan.port) for _ in range(min(plan.connections, count))]
    by_descriptor = {connection.socket.fileno(): connection for connection in connections}
    poll = select.epoll()
    for descriptor in by_descriptor:
        poll.register(descriptor, select.EPOLLIN)
    free = deque(connections)
    clock = time.perf_counter
    outcome.started, started, used = time.time(), clock(), time.process_time()
    sent = answered = 0
    try:
        while answered < count:
            now = clock()
            while free and sent < count:
                due = now if plan.rate is None else started + sent / plan.rate
                if due > now:
                    break
                connection = free.popleft()
                connection.number, connection.due, connection.data = sent, due, b""
                # A request fits into an empty socket buffer.
                connection.socket.send(plan.messages[sent])
                sent += 1
            wait = _ANSWER_SECONDS
            if plan.rate is not None and sent < count and free:
                wait = max(0.0, started + sent / plan.rate - clock())
            events = poll.poll(wait)
            if not events and wait == _ANSWER_SECONDS:
                raise TimeoutError(f"{sent - answered} requests have no answer after {wait:g} s")
            for descriptor, _ in events:
                connection = by_descriptor[descriptor]
                if _receive(connection, outcome):
                    outcome.latencies[connection.number] = clock() - connection.due
                    answered += 1
                    free.append(connection)
    finally:
        outcome.seconds, outcome.cpu = clock() - started, time.process_time() - used
        for connection in connections:
            connection.socket.close()
        poll.close()
    return outcome


def _receive(connection: _Connection, outcome: Outcome) -> bool:
    """Read what has arrived; True once the answer is complete, which is then in ``outcome``."""
    chunk = connection.socket.recv(_CHUNK)
    if not chunk:
        raise ConnectionError("the server closed a connection")
    data = connection.data = connection.data + chunk
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return False
    length = _CONTENT_LENGTH.search(data, 0, end + 2)
    if length is None:
        raise ConnectionError(f"answer without Content-Length: {data[:end]!r}")
    if len(data) < end + 4 + int(length[1]):
        return False
    outcome.statuses[connection.number] = int(data[9:12])
    outcome.bodies[connection.number] = data[end + 4 :]
    return True


def status_counts(outcome: Outcome) -> Counter[int]:
    """Return the number of answers by status."""
    return Counter(outcome.statuses)


def main() -> None:
    """Read the plan, send it and write the outcome."""
    plan_path, outcome_path = map(Path, sys.argv[1:])
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    plan = msgspec.msgpack.decode(plan_path.read_bytes(), type=Plan)
    gc.collect()
    gc.freeze()
    outcome_path.write_bytes(msgspec.msgpack.encode(send(plan)))


if __name__ == "__main__":
    main()
