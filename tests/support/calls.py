"""Calls of a real web server from threads of their own, and how long each took."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from typing import Any, NamedTuple

from couponsite.auth.tokens import issue_access_token

_LONGEST_SECONDS = 60.0
# Well above what an answer takes on a busy machine, and below the web's shortest limit.
PROMPT_SECONDS = 1.5


class Reply(NamedTuple):
    """An answer; ``seconds`` from the first byte sent to the last received."""

    status: int
    headers: Message
    body: Any
    seconds: float


def call(
    port: int, method: str, path: str, *, user: int | None = None, body: object = None, key: str | None = None
) -> Reply:
    """One call on a connection of its own, with the token of ``user`` and an Idempotency-Key if there is one."""
    headers = {"Content-Type": "application/json"}
    if user is not None:
        headers["Authorization"] = f"Bearer {issue_access_token(user)}"
    if key is not None:
        headers["Idempotency-Key"] = key
    started = time.monotonic()
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=_LONGEST_SECONDS)
    try:
        client.request(method, path, None if body is None else json.dumps(body), headers)
        answer = client.getresponse()
        raw = answer.read()
    finally:
        client.close()
    kind = answer.headers.get_content_type()
    told = json.loads(raw) if kind.endswith("json") else raw.decode()
    return Reply(answer.status, answer.headers, told, time.monotonic() - started)


def ask(port: int, coupon_type: str, user: int, *, key: str | None = None) -> Reply:
    """A request for a coupon by its type."""
    return call(port, "POST", "/api/v1/coupons/issue-async", user=user, body={"couponType": coupon_type}, key=key)


def is_refused(reply: Reply) -> bool:
    """Whether it is the 503 of a service that can be asked again in a second."""
    return (reply.status, reply.headers.get("Retry-After"), reply.body["code"]) == (503, "1", "unavailable")


def assert_prompt(replies: list[Reply], status: int = 200) -> None:
    """That every reply has this status and came at once."""
    assert {reply.status for reply in replies} == {status}
    assert max(reply.seconds for reply in replies) < PROMPT_SECONDS


@contextmanager
def probed(port: int) -> Iterator[list[Reply]]:
    """A thread that asks for /livez and /readyz meanwhile; yields the answers."""
    replies: list[Reply] = []
    ended = threading.Event()

    def probe() -> None:
        while not ended.wait(0.05):
            replies.extend(call(port, "GET", path) for path in ("/livez", "/readyz"))

    thread = threading.Thread(target=probe)
    thread.start()
    try:
        yield replies
    finally:
        ended.set()
        thread.join()


@contextmanager
def crowd(port: int, coupon_type: str, *, clients: int) -> Iterator[list[Reply]]:
    """``clients`` threads that ask for a coupon again and again, each time as another user; yields their answers."""
    replies: list[Reply] = []
    ended = threading.Event()

    def insist(first: int) -> None:
        user = first
        while not ended.is_set():
            replies.append(ask(port, coupon_type, user))
            user += clients

    threads = [threading.Thread(target=insist, args=[100_000 + number]) for number in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield replies
    finally:
        ended.set()
        for thread in threads:
            thread.join()
