"""A whole sale on the real processes, from the first request to the last issued coupon, and its CPU cost."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

from django.conf import settings

from common.redis_client import redis_connection
from coupons.controls import coupon_create
from coupons.models import Coupon
from coupons.redis_queue import queue
from devstack import ManagedProcess, wait_until

from . import load_clients
from .load import Plan
from .load_clients import Client, requests_for
from .servers import Server, bare_web, folder, web, workers
from .temporary import mark_outbox_published
from .usage import cpu_seconds, listener, resident_megabytes

USERS = 20_000
CONNECTIONS = (64, 256)
# What a request passes until its coupon is issued; the other processes follow it or wait for other work.
STACK = ("web", "site", "relay", "issuer", "postgres", "redis", "kafka")
OTHERS = ("effects", "orders", "worker", "reconciler", "housekeeper")
_EMPTY_REQUESTS = 20_000
_WARM_UP = 4_000
_RESULT_SECONDS = 120.0
_POLL_SECONDS = 0.02
_IDLE_SHARE = 0.25
_IDLE_WINDOW = 1.0
# Consumers also read what the parts before have published, some hundred thousand events.
_IDLE_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Sale:
    """Seconds from the first request to the last answer and to the last issued coupon; CPU seconds by process kind."""

    answered: float
    issued: float
    cpu: Mapping[str, float]
    client_cpu: float


@dataclass(frozen=True, slots=True)
class Empty:
    """Answers per second of the empty view, its CPU seconds per answer, and the client's against these."""

    rate: float
    cpu: float
    client_share: float


@dataclass(frozen=True, slots=True)
class Sales:
    """Sales over one number of connections; medians of rounds.

    ``fresh`` and ``warm``: seconds to the last coupon, of the first sale of processes that just started and of their
    second. The others are of warm sales: ``accepted`` and ``empty`` requests per second of the service and of an empty
    view, ``ratio`` between them per round, ``cpu`` seconds by process kind, the load client's own in ``client_cpu``;
    ``empty_cpu``: CPU seconds per answer of the empty view, ``empty_client_share``: the client's CPU against these.
    """

    fresh: float
    warm: float
    accepted: float
    empty: float
    ratio: float
    cpu: Mapping[str, float]
    client_cpu: float
    empty_cpu: float
    empty_client_share: float


class Service:
    """The running processes of a sale."""

    def __init__(self, server: Server, folder: Path, roots: Mapping[str, list[int]]) -> None:
        """``folder`` is for logs and plans; ``roots``: pids by process kind; their descendants count as well."""
        self.server = server
        self.folder = folder
        self.client = Client(folder)
        self._roots = roots

    def new_client(self, name: str) -> Client:
        """Return a client to be used beside ``client``."""
        return Client(self.folder, name)

    def sell(self, users: int = USERS, *, connections: int = load_clients.CONNECTIONS) -> Sale:
        """Sell ``users`` coupons to as many users at full load."""
        return self.sell_out(new_coupon(users), connections=connections)

    def sell_out(self, coupon: Coupon, *, connections: int = load_clients.CONNECTIONS) -> Sale:
        """Sell every unit of ``coupon``, each to another user, at full load."""
        users = coupon.total_quantity
        plan = Plan(self.server.port, connections, requests_for(coupon, users, self.server.port))
        before = self.used()
        with self.client.start(plan) as sending:
            ended = await_issued(coupon, sending)
            used = self.used()
            outcome = self.client.outcome(sending)
        cpu = {kind: used[kind] - before[kind] for kind in used}
        return Sale(outcome.seconds, ended - outcome.started, cpu, outcome.cpu)

    def settle(self) -> None:
        """Wait until all processes together use at most a quarter of a core: effects follow a sale for a while."""

        def is_idle() -> bool:
            before, started = self.used(), time.perf_counter()
            time.sleep(_IDLE_WINDOW)
            used = sum(self.used().values()) - sum(before.values())
            return used <= _IDLE_SHARE * (time.perf_counter() - started)

        wait_until(is_idle, _IDLE_SECONDS, f"the processes are still busy after {_IDLE_SECONDS:.0f} s")

    def web_megabytes(self) -> float:
        """Return the resident memory of the web processes."""
        return resident_megabytes(self._roots["web"])

    def used(self) -> dict[str, float]:
        """Return CPU seconds so far by process kind."""
        return {kind: cpu_seconds(roots) for kind, roots in self._roots.items()}


@contextmanager
def service(*others: str) -> Iterator[Service]:
    """Start web, relay, issuer and ``others`` of the Procfile; only web is certain to be ready."""
    if "worker" in others:
        _require_no_other_workers()
    with folder() as directory, workers(directory, "relay", "issuer", *others) as started, web(directory) as server:
        roots = {
            "web": [server.process.pid],
            **({"site": [server.site.pid]} if server.site else {}),
            **{role: [process.pid] for role, process in started.items()},
        }
        yield Service(server, directory, {**roots, **_servers()})


def measure(*, rounds: int) -> dict[int, Sales]:
    """Sell twice on the same processes in every round, just started and then warm; return the sales by connections."""
    sold: dict[int, list[tuple[Sale, Sale, Empty]]] = {connections: [] for connections in CONNECTIONS}
    for _ in range(rounds):
        for connections, turns in sold.items():
            mark_outbox_published()
            with folder() as directory, bare_web(directory, middleware=False) as bare, service(*OTHERS) as running:
                running.settle()
                fresh = running.sell(connections=connections)
                running.settle()
                warm = running.sell(connections=connections)
                running.settle()
                turns.append((fresh, warm, _empty_rate(bare, Client(directory), connections)))
    return {connections: _medians(turns) for connections, turns in sold.items()}


def _empty_rate(bare: Server, client: Client, connections: int) -> Empty:
    coupon = new_coupon(1)
    client.send(Plan(bare.port, connections, requests_for(coupon, _WARM_UP, bare.port)))
    plan = Plan(bare.port, connections, requests_for(coupon, _EMPTY_REQUESTS, bare.port))
    before = cpu_seconds([bare.process.pid])
    outcome = client.send(plan)
    used = cpu_seconds([bare.process.pid]) - before
    return Empty(_EMPTY_REQUESTS / outcome.seconds, used / _EMPTY_REQUESTS, outcome.cpu / used)


def _medians(turns: Sequence[tuple[Sale, Sale, Empty]]) -> Sales:
    warm_sales = [warm for _, warm, _ in turns]
    return Sales(
        fresh=median(fresh.issued for fresh, _, _ in turns),
        warm=median(warm.issued for warm in warm_sales),
        accepted=median(USERS / warm.answered for warm in warm_sales),
        empty=median(empty.rate for _, _, empty in turns),
        ratio=median(USERS / warm.answered / empty.rate for _, warm, empty in turns),
        cpu={kind: median(warm.cpu[kind] for warm in warm_sales) for kind in warm_sales[0].cpu},
        client_cpu=median(warm.client_cpu for warm in warm_sales),
        empty_cpu=median(empty.cpu for _, _, empty in turns),
        empty_client_share=median(empty.client_share for _, _, empty in turns),
    )


def new_coupon(quantity: int, admission: str = "queue", *, coupon_type: str = "") -> Coupon:
    """Create an open coupon, of a new type unless it is given."""
    coupon, _ = coupon_create(
        actor="benchmarks",
        coupon_type=coupon_type or f"SALE_{secrets.token_hex(4)}",
        name="sale",
        discount_type=Coupon.DiscountType.PERCENT,
        discount_value=10,
        total_quantity=quantity,
        admission=admission,
    )
    return coupon


def await_issued(coupon: Coupon, sending: ManagedProcess) -> float:
    """Wait until every coupon is issued or the client has failed; return the wall clock."""

    def is_done() -> bool:
        coupon.refresh_from_db(fields=["issued"])
        return coupon.issued >= coupon.total_quantity or bool(sending.poll())

    wait_until(is_done, _RESULT_SECONDS, f"not every coupon was issued after {_RESULT_SECONDS:.0f} s", _POLL_SECONDS)
    return time.time()


def _servers() -> dict[str, list[int]]:
    """Return the pids of PostgreSQL, Redis and Kafka; those on other machines are left out."""
    ports = {
        "postgres": [int(settings.DATABASES["default"]["PORT"] or 5432)],
        "redis": [urlsplit(settings.REDIS_URL).port or 6379],
        "kafka": [int(server.rpartition(":")[2]) for server in settings.KAFKA_BOOTSTRAP_SERVERS.split(",")],
    }
    found = {kind: [pid for port in numbers if (pid := listener(port))] for kind, numbers in ports.items()}
    return {kind: pids for kind, pids in found.items() if pids}


def _require_no_other_workers() -> None:
    """Raise AssertionError if other issue workers use this Redis: each would drop the other's entries."""
    if redis_connection().exists(queue.QUEUE, queue.WORKERS):
        raise AssertionError("other issue workers use this Redis: give REDIS_URL an index of its own, such as .../9")
