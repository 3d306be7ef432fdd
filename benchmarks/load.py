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

# The status of a request whose connection broke.
BROKEN = 0
_ANSWER_SECONDS = 30.0
_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
_CHUNK = 65_536
_IDLE = -1


class Plan(msgspec.Struct):
    """Encoded requests to a server on this machine.

    ``rate`` None is a closed loop: every connection sends its next request after its answer. Otherwise so many requests
    are due per second, whether or not earlier ones were answered; those that find no free connection wait for one.
    ``reconnect``: a connection that breaks is opened again, and its request has the status ``BROKEN``.
    """

    port: int
    connections: int
    messages: list[bytes]
    rate: float | None = None
    reconnect: bool = False


class Outcome(msgspec.Struct):
    """The answers to a plan; durations in seconds. The lists are in the order of the plan's messages.

    ``started`` is the wall clock at the first request. ``latencies`` count from the moment a request was due, in a
    closed loop from its sending; ``delays`` are the part of them before the sending. ``cpu`` is the client's own CPU
    time.
    """

    started: float
    seconds: float
    latencies: list[float]
    delays: list[float]
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
        self.number = _IDLE
        self.due = 0.0


class _Sender:
    def __init__(self, plan: Plan) -> None:
        count = len(plan.messages)
        self._plan = plan
        self.outcome = Outcome(0.0, 0.0, [0.0] * count, [0.0] * count, [b""] * count, [BROKEN] * count, 0.0)
        self._poll = select.epoll()
        self._connections: dict[int, _Connection] = {}
        self._free: deque[_Connection] = deque()
        self._sent = self._answered = 0
        for _ in range(min(plan.connections, count)):
            self._connect()

    def _connect(self) -> None:
        connection = _Connection(self._plan.port)
        descriptor = connection.socket.fileno()
        self._connections[descriptor] = connection
        self._poll.register(descriptor, select.EPOLLIN)
        self._free.append(connection)

    def run(self) -> None:
        plan, outcome, connections, free = self._plan, self.outcome, self._connections, self._free
        clock, count = time.perf_counter, len(plan.messages)
        outcome.started, started, used = time.time(), clock(), time.process_time()
        try:
            while self._answered < count:
                while free and self._sent < count:
                    now = clock()
                    due = now if plan.rate is None else started + self._sent / plan.rate
                    if due > now:
                        break
                    self._send(free.popleft(), due, now)
                wait = _ANSWER_SECONDS
                if plan.rate is not None and self._sent < count and free:
                    wait = max(0.0, started + self._sent / plan.rate - clock())
                events = self._poll.poll(wait)
                if not events and wait == _ANSWER_SECONDS:
                    raise TimeoutError(f"{self._sent - self._answered} requests have no answer after {wait:g} s")
                for descriptor, _ in events:
                    connection = connections[descriptor]
                    try:
                        complete = _receive(connection, outcome)
                    except ConnectionError:
                        self._replace(connection)
                        continue
                    if complete:
                        self._end(connection)
                        free.append(connection)
        finally:
            outcome.seconds, outcome.cpu = clock() - started, time.process_time() - used
            for connection in connections.values():
                connection.socket.close()
            self._poll.close()

    def _send(self, connection: _Connection, due: float, now: float) -> None:
        connection.number, connection.due, connection.data = self._sent, due, b""
        self.outcome.delays[self._sent] = now - due
        self._sent += 1
        try:
            # A request fits into an empty socket buffer.
            connection.socket.send(self._plan.messages[connection.number])
        except ConnectionError:
            self._replace(connection)

    def _end(self, connection: _Connection) -> None:
        self.outcome.latencies[connection.number] = time.perf_counter() - connection.due
        connection.number = _IDLE
        self._answered += 1

    def _replace(self, connection: _Connection) -> None:
        """Open a new connection instead of a broken one, whose request, if any, counts as answered."""
        if not self._plan.reconnect:
            raise ConnectionError("the server closed a connection")
        if connection.number != _IDLE:
            self._end(connection)
        else:
            self._free.remove(connection)
        del self._connections[connection.socket.fileno()]
        connection.socket.close()
        self._connect()


def send(plan: Plan) -> Outcome:
    """Send every message once.

    Raises ConnectionError if a connection breaks, unless the plan reconnects, and TimeoutError if no answer comes for
    30 s.
    """
    sender = _Sender(plan)
    sender.run()
    return sender.outcome


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
        raise RuntimeError(f"answer without Content-Length: {data[:end]!r}")
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
