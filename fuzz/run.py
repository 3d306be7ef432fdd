"""One run: starts the processes, sends input until the deadline and checks the outcome."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from django.conf import settings
from django.core.management import call_command
from django.db import connection

from common.processes.lifecycle import StopFlag, check_database, wait_for
from common.processes.outages import ServiceUnavailable
from demo.processes import WebProcess, procfile_process, wait_until_ready
from devstack.ports import free_port
from kafka_bridge.client import check_kafka, ensure_topics

from .findings import Findings
from .http_load import HttpLoad
from .kafka_load import KafkaLoad
from .redis_load import RedisLoad
from .verdict import LogWatch, ProcessWatch, await_results, check_innocents, check_invariants
from .world import make_world

ROLES = ("relay", "issuer", "effects", "orders", "worker", "reconciler", "housekeeper")
INPUTS = ("http", "kafka", "transactions", "redis")

_SERVICE_SECONDS = 30.0
_STOP_SECONDS = 25.0
_POLL_SECONDS = 1.0
_PROGRESS_SECONDS = 10.0
_HOSTILE_CONNECTIONS = 6
_VALID_USERS = 3
_MESSAGES_PER_SECOND = 30
_REDIS_PAUSE = 0.5
# The run stops sending after so many findings.
_MAX_FINDINGS = 40


class Fuzz:
    """A run from the empty database to the verdict."""

    def __init__(self, *, seconds: float, seed: str, inputs: Collection[str], logs: Path) -> None:
        """``inputs``: the members of INPUTS to send; valid users are always active. ``logs``: folder of the logs."""
        self._seconds = seconds
        self._seed = seed
        self._inputs = inputs
        self._logs = logs
        self._findings = Findings()

    def run(self) -> bool:
        """Run and return whether there was no finding; prints progress and the findings.

        Raises ServiceUnavailable or TimeoutError if the run cannot start.
        """
        print(f"fuzz: seed {self._seed}, {self._seconds:.0f} s of {', '.join(self._inputs)}", flush=True)
        wait_for(check_database, _SERVICE_SECONDS, StopFlag())
        wait_for(check_kafka, _SERVICE_SECONDS, StopFlag())
        call_command("migrate", verbosity=0, interactive=False)
        _, complaints = ensure_topics(settings.KAFKA_ROUTES)
        if complaints:
            raise ServiceUnavailable("; ".join(complaints))
        with ExitStack() as stack:
            port = free_port()
            env = self._environment(stack.enter_context(_provider()), port)
            # Before any process starts, because it raises unless the database is empty.
            world = make_world()
            web = WebProcess(env, self._log("web"))
            others = [procfile_process(role, env, self._log(role)) for role in ROLES]
            for process in (web, *others):
                process.start()
                stack.callback(process.stop, _STOP_SECONDS)
            processes = [web, web.site, *others]
            wait_until_ready(web, port)
            http = HttpLoad(port, world, self._seed, self._findings)
            kafka = KafkaLoad(
                world,
                self._seed,
                self._findings,
                per_second=_MESSAGES_PER_SECOND,
                transactions="transactions" in self._inputs,
            )
            redis = RedisLoad(world, self._seed, self._findings, pause=_REDIS_PAUSE)
            logs, alive = LogWatch(processes, self._findings), ProcessWatch(processes, self._findings)

            def check() -> str:
                logs.look()
                alive.look()
                return f"{dict(http.statuses)} {dict(kafka.sent)} {dict(redis.written)}"

            self._send(http, kafka, redis, check)
            print(f"fuzz: {check()}; waiting for the results", flush=True)
            await_results(http.accepted | kafka.accepted, alive, self._findings)
            check_innocents(http.accepted_of_valid | kafka.accepted, http.paid, self._findings)
            check_invariants(env, self._findings)
            check()
            for process in processes:
                if (code := process.stop(_STOP_SECONDS)) != 0:
                    self._findings.add(f"{process.name}: exit {code} after SIGTERM", process.log_tail(5))
            logs.look()
        print(self._findings.report() or "fuzz: everything holds", flush=True)
        return not self._findings

    def _send(self, http: HttpLoad, kafka: KafkaLoad, redis: RedisLoad, check: Callable[[], str]) -> None:
        deadline = time.monotonic() + self._seconds
        stopping = threading.Event()
        hostile = _HOSTILE_CONNECTIONS if "http" in self._inputs else 0

        async def send_http() -> None:
            async with asyncio.timeout(self._seconds + _SERVICE_SECONDS * 4):
                await http.run(deadline, hostile=hostile, valid=_VALID_USERS)

        with ThreadPoolExecutor(3) as pool:
            running = [pool.submit(asyncio.run, send_http())]
            if "kafka" in self._inputs:
                running.append(pool.submit(kafka.run, deadline, stopping))
            if "redis" in self._inputs:
                running.append(pool.submit(redis.run, deadline, stopping))
            try:
                shown_at = started_at = time.monotonic()
                while not all(future.done() for future in running):
                    time.sleep(_POLL_SECONDS)
                    progress = check()
                    if time.monotonic() - shown_at >= _PROGRESS_SECONDS:
                        shown_at = time.monotonic()
                        print(f"{shown_at - started_at:6.0f} s  {len(self._findings)} findings  {progress}", flush=True)
                    if len(self._findings) >= _MAX_FINDINGS:
                        http.stop()
                        break
            finally:
                stopping.set()
                http.stop()
            for future in running:
                future.result()
        connection.close()

    def _environment(self, provider: str, port: int) -> Mapping[str, str]:
        return {
            "PORT": str(port),
            "HOST": "127.0.0.1",
            "METRICS_PORT": "0",
            "ALIMTALK_URL": provider,
            "ALIMTALK_KEY": "for-the-fuzz-only",
            "DATA_PLATFORM_URL": provider,
            "ORDER_MONITORING_URL": provider,
            "KAFKA_CONSUMER_CONFIG": '{"session.timeout.ms": 6000}',
            "RECONCILE_PATIENCE_SECONDS": "5",
        }

    def _log(self, name: str) -> Path:
        path = self._logs / f"{name}.log"
        path.unlink(missing_ok=True)
        return path


@contextmanager
def _provider() -> Iterator[str]:
    """Run an external service that answers 200 to every POST, and yield its URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="provider")
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: thousands of calls are normal."""
