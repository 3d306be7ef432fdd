"""The client, as a process of its own: ``python -m benchmarks.load PLAN OUTCOME`` sends what the plan file holds."""

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
    """Requests, ready to be sent, to a server on this machine.

    ``rate`` None is a closed loop: every connection sends its next request when it has its answer. Else so many are
    due per second, whether or not earlier ones were answered, as long as ``connections`` last.
    """

    port: int
    connections: int
    messages: list[bytes]
    rate: float | None = None


class Outcome(msgspec.Struct):
    """What came of a plan; durations in seconds. The lists are in the order of the plan's messages.

    ``started`` is the wall clock at the first request; ``latencies`` count from the moment a request was due, which in
    a closed loop is when it was sent.
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
    waiting = iter(range(len(plan.messages)))
    connections = [Connection(plan.port) for _ in range(min(plan.connections, len(plan.messages)))]
    wall, started = time.time(), time.perf_counter()

    async def work_off(connection: Connection, numbers: Iterator[int]) -> None:
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
                group.create_task(work_off(connection, waiting))
    finally:
        for connection in connections:
            connection.close()
    return Outcome(wall, time.perf_counter() - started, latencies, bodies, dict(statuses))


def main() -> None:
    """Read the plan, send it, write the outcome."""
    plan_path, outcome_path = map(Path, sys.argv[1:])
    plan = msgspec.msgpack.decode(plan_path.read_bytes(), type=Plan)
    gc.collect()
    gc.freeze()
    outcome_path.write_bytes(msgspec.msgpack.encode(asyncio.run(send(plan))))


if __name__ == "__main__":
    main()
