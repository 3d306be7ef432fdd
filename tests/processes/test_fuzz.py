"""Hostile input for a minute stops nothing; and what it would stop, the run says."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from uuid import uuid4

import pytest
from django.conf import settings

from devstack import ManagedProcess, wait_until
from fuzz.findings import Findings
from fuzz.http_input import hostile_request
from fuzz.http_load import HttpLoad
from fuzz.kafka_input import KafkaMessage, hostile_message
from fuzz.raw_producer import RawProducer
from fuzz.verdict import LogWatch, ProcessWatch, check_innocents
from fuzz.world import make_world
from kafka_bridge.models import DeadLetter
from kafka_bridge.registry import prefixed
from tests.support.factories import CouponFactory
from tests.support.kafka import read_topic
from tests.support.service import environment

pytestmark = pytest.mark.django_db(transaction=True)

SECONDS = 60
# Starting, the wait for the results and the invariants come on top, on a busy machine.
LONGEST_SECONDS = 600


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str], ManagedProcess]:
    """``program("print(1)")``: a program of Python, not started yet."""

    def make(code: str) -> ManagedProcess:
        return ManagedProcess("planted", [sys.executable, "-c", code], None, None, tmp_path / "planted.log")

    return make


def test_a_minute_of_hostile_input_stops_nothing(topics: str, redis_flushed: None, tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "fuzz", "--seconds", str(SECONDS), "--seed", "a minute", "--logs", str(tmp_path)],
        env={**os.environ, **environment()},
        cwd=settings.BASE_DIR,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LONGEST_SECONDS,
        check=False,
    )
    assert run.returncode == 0, run.stdout
    assert "fuzz: everything holds" in run.stdout


def test_the_same_seed_makes_the_same_input() -> None:
    world = make_world()
    requests = [[hostile_request(Random(f"s:{n}"), world) for n in range(300)] for _ in range(2)]
    messages = [[hostile_message(Random(f"s:{n}"), world) for n in range(300)] for _ in range(2)]
    assert requests[0] == requests[1]
    assert [replace_time(one) for one in messages[0]] == [replace_time(one) for one in messages[1]]
    assert len({one.data for one in requests[0]}) > 290
    assert hostile_request(Random("other"), world) != requests[0][0]


def replace_time(message: KafkaMessage) -> tuple[object, ...]:
    # Half of the orders are of this minute.
    return message.topic, message.key, message.headers, message.timestamp


def test_a_database_with_coupons_is_refused(topics: str, tmp_path: Path) -> None:
    CouponFactory.create()
    run = subprocess.run(
        [sys.executable, "-m", "fuzz", "--seconds", "1", "--logs", str(tmp_path)],
        env={**os.environ, **environment()},
        cwd=settings.BASE_DIR,
        capture_output=True,
        text=True,
        timeout=LONGEST_SECONDS,
        check=False,
    )
    assert run.returncode == 1
    assert run.stderr == "fuzz: DATABASE_URL names a database with coupons or products: give an empty one\n"


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (r'{"event": "x", "exception": "Traceback (most recent call last):\n  f\nKeyError: 7"}', "KeyError: 7"),
        ("Traceback (most recent call last):\n  f\nsome.where.OddError: odd", "some.where.OddError: odd"),
        ("thread 'main' panicked at src/x.rs", "panicked at"),
        ("HTTP/1.1 500 Internal Server Error", "Internal Server Error"),
    ],
)
def test_a_traceback_in_a_log_is_found_with_the_input_before_it(
    program: Callable[[str], ManagedProcess], line: str, kind: str
) -> None:
    findings = Findings()
    process = program(f"print('all is well'); print({line!r})")
    watch = LogWatch([process], findings)
    findings.sent("HTTP 7: b'GET'")
    with process:
        process.wait(30)
    watch.look()
    watch.look()
    assert f"log of planted: {kind} (1 times)" in findings.report()
    assert "sent before: HTTP 7: b'GET'" in findings.report()
    assert "all is well" not in findings.report()


def test_a_worker_that_dies_is_found_though_its_parent_lives(program: Callable[[str], ManagedProcess]) -> None:
    findings = Findings()
    # The parent alone writes: lines of two unbuffered processes may mix.
    code = "import os, time; child = os.fork(); child and print(f'child {child} lives', flush=True); time.sleep(60)"
    with program(code) as process:
        wait_until(lambda: process.log_tail().endswith("lives"), 30, "the program did not fork")
        watch = ProcessWatch([process], findings)
        watch.look()
        assert not findings
        child = int(process.log_tail().split()[1])
        os.kill(child, signal.SIGKILL)

        def is_found() -> bool:
            watch.look()
            return bool(findings)

        wait_until(is_found, 30, "the dead worker was not found")
        assert f"planted: process {child} is dead" in findings.report()
        assert watch.is_one_dead


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"HTTP/1.1 500 Oh\r\n\r\n", "FAIL HTTP 500 "),
        (b"HTTP/1.1 502 Oh\r\n\r\n", "FAIL HTTP 502 "),
        (b"HTTP/1.1 503 Oh\r\n\r\n", "FAIL HTTP 503 "),
        (b"HTTP/1.1 503 Oh\r\nRetry-After: 1\r\n\r\n", ""),
        (b"HTTP/1.1 404 Oh\r\n\r\nTraceback (most recent call last)", "FAIL a traceback in an answer "),
        (b"HTTP/1.1 201 Oh\r\n\r\n", "FAIL HTTP 201 for a body that ended early "),
        (b"HTTP/1.1 404 Oh\r\n\r\n", ""),
        (b"", "FAIL no answer to a whole request "),
    ],
)
def test_an_answer_that_must_not_be_is_found_with_its_request(answer: bytes, kind: str) -> None:
    findings = Findings()
    with answering(answer) as port:
        load = HttpLoad(port, make_world(), "planted", findings)
        asyncio.run(load.run(time.monotonic() + 1.5, hostile=4, valid=0))
    assert sum(load.statuses.values()) > 20
    assert findings.report().startswith(kind)
    assert bool(findings) == bool(kind)
    assert "HTTP/1.1" in findings.report() or not kind


@contextmanager
def answering(answer: bytes) -> Iterator[int]:
    """A server that answers everything with these bytes and closes; the value is its port."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.settimeout(2)
            try:
                # All of it, or closing resets the connection under the answer.
                self.request.sendall(answer)
                self.request.shutdown(socket.SHUT_WR)
                while self.request.recv(65_536):
                    pass
            except OSError:
                pass

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def test_an_innocent_message_among_the_dead_letters_is_found() -> None:
    findings = Findings()
    innocent = uuid4()
    DeadLetter.objects.create(
        consumer_group="ranking",
        topic="order-completed",
        partition=0,
        offset=1,
        message_timestamp=1,
        event_id=innocent,
        headers=b"[]",
        error_class="ResponseError",
        error_message="WRONGTYPE",
    )
    check_innocents({uuid4()}, [], findings)
    assert not findings
    check_innocents({innocent}, [], findings)
    assert "an innocent message is a dead letter of ranking: ResponseError" in findings.report()


def test_a_message_arrives_with_its_odd_headers(topics: str) -> None:
    producer = RawProducer({"bootstrap.servers": settings.KAFKA_BOOTSTRAP_SERVERS})
    headers = [("쿠폰".encode(), None), (b"twice", b"\xff\x00"), (b"twice", b"")]
    assert producer.produce(prefixed("order-completed"), None, b"\xff", headers, 1_000)
    assert producer.produce(prefixed("order-completed"), b"\xff", b"\xff", [(b"\xff", b"1")])
    producer.close()
    odd, unreadable = sorted(read_topic("order-completed", 2), key=lambda message: message.offset() or 0)
    assert (odd.key(), odd.value(), odd.timestamp()[1]) == (b"\xff", None, 1_000)
    assert odd.headers() == [("쿠폰", None), ("twice", b"\xff\x00"), ("twice", b"")]
    assert unreadable.value() == b"\xff"
