"""How many calls may be in progress before further ones are refused, and that a refusal comes before any work."""

from __future__ import annotations

import asyncio
import json
import select
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from common.in_progress import LEAST, InProgress
from coupons.messages import ISSUE_REQUESTED
from couponsite.auth.tokens import issue_access_token
from couponsite.intake import loop_load
from couponsite.intake.loop_load import TICKS, LoopLoad, Taken
from couponsite.intake.server import Intake
from demo.load_client import encode_request
from kafka_bridge.models import OutboxMessage
from tests.support.calls import ask
from tests.support.factories import CouponFactory
from tests.support.threads import lock

from .conftest import Answer, Pair, connected, read_answer

# More than a process takes in, and more than wait in line.
CROWD = 3000


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_on_an_idle_process_is_admitted_up_to_the_least() -> None:
    calls = InProgress(clock=Clock())
    assert [calls.begin() for _ in range(LEAST + 1)] == [True] * LEAST + [False]
    calls.end()
    assert calls.begin()
    assert not calls.begin()


def test_a_fast_process_admits_as_many_as_it_answers_in_half_a_second() -> None:
    clock = Clock()
    calls = InProgress(clock=clock)
    for _ in range(4000):
        assert calls.begin()
        clock.now += 0.00025
        calls.end()
    admitted = 0
    while calls.begin():
        admitted += 1
    assert 1900 <= admitted <= 2100


def test_a_process_that_became_slow_admits_fewer_again() -> None:
    clock = Clock()
    calls = InProgress(clock=clock)
    for seconds in (0.00025, 0.01):
        for _ in range(4000):
            assert calls.begin()
            clock.now += seconds
            calls.end()
    assert [calls.begin() for _ in range(LEAST + 1)] == [True] * LEAST + [False]


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), 30))


def full(load: LoopLoad) -> list[Taken]:
    """Fill it with requests and return them."""
    return list(iter(load.take, None))


def test_the_loop_takes_in_the_next_request_when_it_has_answered() -> None:
    async def main() -> None:
        load = LoopLoad()
        taken = full(load)
        assert len(taken) == loop_load.LEAST
        load.release(taken.pop())
        assert load.take() is not None
        assert load.take() is None

    run(main)


def test_requests_that_wait_for_something_else_than_the_loop_keep_out_no_others() -> None:
    async def main() -> None:
        load = LoopLoad()
        waiting = full(load)
        while (other := load.take()) is None:
            await asyncio.sleep(0.01)
        for taken in (*waiting, other):
            load.release(taken)
        # Requests that no longer counted were released: the limit is what it was.
        assert len(full(load)) == loop_load.LEAST

    run(main)


def test_a_loop_that_has_fallen_behind_takes_in_nothing_more_however_long_its_turns_are() -> None:
    async def main() -> None:
        load = LoopLoad()
        full(load)
        for _ in range(TICKS - 1):
            # Longer than all ticks of a loop that keeps up.
            time.sleep(0.15)
            await asyncio.sleep(0)
            assert load.take() is None

    run(main)


def asgi_scope(path: str) -> dict[str, Any]:
    """A POST with a body of two bytes and a token that is none."""
    return {
        "type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"", "client": None,
        "headers": [(b"host", b"localhost"), (b"authorization", b"Bearer no-token"), (b"content-length", b"2")],
    }  # fmt: skip


class Call:
    """A call of the intake whose body does not come; ``refusal`` is its answer, None if it waits for the body."""

    def __init__(self, intake: Intake, path: str) -> None:
        self._sent: list[dict[str, Any]] = []
        self._reads = asyncio.Event()
        self._task = asyncio.create_task(intake(asgi_scope(path), self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        self._reads.set()
        return await asyncio.Future()

    async def _send(self, message: dict[str, Any]) -> None:
        self._sent.append(message)

    async def refusal(self) -> Answer | None:
        reads = asyncio.create_task(self._reads.wait())
        await asyncio.wait({self._task, reads}, return_when=asyncio.FIRST_COMPLETED)
        if not self._task.done():
            return None
        assert not self._reads.is_set()
        start, body = self._sent
        headers = {name.decode(): value.decode() for name, value in start["headers"]}
        return Answer(start["status"], headers, body["body"])

    async def end(self) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})


@pytest.mark.parametrize("path", ["/api/v1/coupons/issue-async", "/api/v1/orders", "/admin/login/"])
def test_a_request_past_the_limit_is_refused_before_its_token_or_body_is_read(path: str) -> None:
    async def main() -> None:
        intake = Intake()
        # All of them begin in one turn of the loop.
        calls = [Call(intake, path) for _ in range(loop_load.LEAST)]
        refused = await Call(intake, path).refusal()
        assert refused is not None
        assert [await call.refusal() for call in calls] == [None] * loop_load.LEAST
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        assert b"This request was not executed." in refused.body
        if path.startswith("/api/"):
            problem = json.loads(refused.body)
            assert (problem["code"], problem["instance"]) == ("unavailable", path)
        else:
            assert refused.headers["content-type"].startswith("text/html")
        for call in calls:
            await call.end()
        later = Call(intake, path)
        assert await later.refusal() is None
        await later.end()

    run(main)


def answers_in_order(port: int, messages: list[bytes]) -> Iterator[Answer]:
    """Send each message over a connection of its own, then yield the answers as they come."""
    with ExitStack() as stack:
        clients = {stack.enter_context(connected(port)) for _ in messages}
        for client, message in zip(clients, messages, strict=True):
            client.sendall(message)
        poll = select.epoll()
        stack.callback(poll.close)
        by_descriptor = {client.fileno(): client for client in clients}
        for descriptor in by_descriptor:
            poll.register(descriptor, select.EPOLLIN)
        while by_descriptor:
            for descriptor, _ in poll.poll(30):
                poll.unregister(descriptor)
                yield read_answer(by_descriptor.pop(descriptor), "POST")


def test_a_crowd_before_a_blocked_database_is_refused_while_it_is_blocked_and_accepted_afterwards(
    pair: Pair, many_files: None
) -> None:
    coupon = CouponFactory.create(total_quantity=10 * CROWD)
    # The coupon is in the cache before its table is needed.
    assert ask(pair.port, coupon.coupon_type, CROWD + 1).status == 202
    messages = [
        encode_request(
            "POST", f"/api/v1/coupons/{coupon.id}/issue-async", pair.port,
            {"authorization": f"Bearer {issue_access_token(user)}"}, {},
        )
        for user in range(1, CROWD + 1)
    ]  # fmt: skip
    with lock("LOCK TABLE kafka_bridge_outboxmessage IN ACCESS EXCLUSIVE MODE"):
        answers = list(answers_in_order(pair.port, messages))
    assert {(answer.status, answer.headers["retry-after"]) for answer in answers} == {(503, "1")}
    details = [json.loads(answer.body)["detail"] for answer in answers]
    assert all("was not executed" in detail for detail in details)
    # The surplus does not wait: it is answered before the requests that were there first.
    surplus = details.count("Too many requests are in progress. This request was not executed.")
    assert surplus >= CROWD - LEAST - loop_load.LEAST
    assert set(details[: surplus // 2]) == {"Too many requests are in progress. This request was not executed."}
    assert OutboxMessage.objects.filter(event_type=ISSUE_REQUESTED).count() == 1
    assert {pair.to_lane(message).status for message in messages[:20]} == {202}
    assert OutboxMessage.objects.filter(event_type=ISSUE_REQUESTED).count() == 21
