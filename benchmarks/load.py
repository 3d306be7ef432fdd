"""The load client as a process: ``python -m benchmarks.load PLAN OUTCOME`` sends the requests of a plan file."""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec

from demo.load_client import Connection


class Plan(msgspec.Struct):
    """Encoded requests to a server on this machine.

    ``rate`` None is a closed loop: every connection sends its next request after its answer. Otherwise so many requests
    are due per second, whether or not earlier ones were answered, while a connection is free.
    """

    port: int
    connections: int
    messages: list[bytes]
    rate: float | None = None


class Outcome(msgspec.Struct):
    """The answers to a plan; durations in seconds. The lists are in the order of the plan's messages.

    ``started`` is the wall clock at the first request. ``latencies`` count from the moment a request was due, in a
    closed loop from its sending.
    """

    started: float
    seconds: float
    latencies: list[float]
    bodies: list[bytes]
    statuses: dict[int, int]


async def send(plan: Plan) -> Outcome:
    """Send every message once. Raises what the connection raises."""
    latencies, bodies = [0.0] * len(plan.messages), [b""] * len(plan.messages)
    statuses: Counter[int] = Counter()
    remaining = iter(range(len(plan.messages)))
    connections = [Connection(plan.port) for _ in range(min(plan.connections, len(plan.messages)))]
    wall, started = time.time(), time.perf_counter()

    async def send_remaining(connection: Connection, numbers: Iterator[int]) -> None:
        for number in numbers:
            due = time.perf_counter() if plan.rate is None else started + number / plan.rate
            if (early := due - time.perf_counter()) > 0:
                await asyncio.sleep(early)
            status, bodies[number] = await connection.exchange(plan.messages[number])
            latencies[number] = time.perf_counter() - due
            statuses[status] += 1

    try:
        async with asyncio.TaskGroup() as group:
            for connection in connections:
                group.create_task(send_remaining(connection, remaining))
    finally:
        for connection in connections:
            connection.close()
    return Outcome(wall, time.perf_counter() - started, latencies, bodies, dict(statuses))


def main() -> None:
    """Read the plan, send it and write the outcome."""
    plan_path, outcome_path = map(Path, sys.argv[1:])
    plan = msgspec.msgpack.decode(plan_path.read_bytes(), type=Plan)
    gc.collect()
    gc.freeze()
    outcome_path.write_bytes(msgspec.msgpack.encode(asyncio.run(send(plan))))


if __name__ == "__main__":
    main()
