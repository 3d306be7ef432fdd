"""A whole sale on the real processes, from the first request to the last issued coupon, and its CPU cost."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from urllib.parse import urlsplit

from django.conf import settings

from coupons.controls import coupon_create
from coupons.models import Coupon
from devstack import ManagedProcess, wait_until

from .cpu import cpu_seconds, listener
from .load import Plan
from .load_clients import CONNECTIONS, Client, requests_for
from .servers import Server, folder, web, workers
from .temporary import mark_outbox_published

USERS = 20_000
_RESULT_SECONDS = 120.0
_POLL_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Sale:
    """Seconds from the first request to the last answer and to the last issued coupon; CPU seconds by process kind."""

    answered: float
    issued: float
    cpu: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Sales:
    """Medians: ``fresh`` of sales on processes that just started, the others of second sales on the same processes."""

    fresh: float
    warm: float
    accepted: float
    cpu: Mapping[str, float]


class Service:
    """The running processes of a sale."""

    def __init__(self, server: Server, client: Client, roots: Mapping[str, list[int]]) -> None:
        """``roots``: pids by process kind; their descendants count as well."""
        self.server = server
        self.client = client
        self._roots = roots

    def sell(self, users: int = USERS) -> Sale:
        """Sell ``users`` coupons to as many users at full load."""
        return self.sell_out(new_coupon(users))

    def sell_out(self, coupon: Coupon) -> Sale:
        """Sell every unit of ``coupon``, each to another user, at full load."""
        users = coupon.total_quantity
        plan = Plan(self.server.port, CONNECTIONS, requests_for(coupon, users, self.server.port))
        before = self.used()
        with self.client.start(plan) as sending:
            ended = await_issued(coupon, sending)
            outcome = self.client.outcome(sending)
        used = self.used()
        return Sale(outcome.seconds, ended - outcome.started, {kind: used[kind] - before[kind] for kind in used})

    def used(self) -> dict[str, float]:
        """Return CPU seconds so far by process kind."""
        return {kind: cpu_seconds(roots) for kind, roots in self._roots.items()}


@contextmanager
def service(*others: str) -> Iterator[Service]:
    """Start web, relay, issuer and ``others`` of the Procfile; only web is certain to be ready."""
    with folder() as directory, workers(directory, "relay", "issuer", *others) as started, web(directory) as server:
        roots = {
            "web": [server.process.pid],
            **({"site": [server.site.pid]} if server.site else {}),
            **{role: [process.pid] for role, process in started.items()},
        }
        yield Service(server, Client(directory), {**roots, **_servers()})


def measure(*, rounds: int) -> Sales:
    """Sell twice on the same processes in every round: just started, then warm."""
    mark_outbox_published()
    fresh, warm = [], []
    for _ in range(rounds):
        with service() as running:
            fresh.append(running.sell())
            warm.append(running.sell())
    return Sales(
        fresh=median(sale.issued for sale in fresh),
        warm=median(sale.issued for sale in warm),
        accepted=median(sale.answered for sale in warm),
        cpu={kind: median(sale.cpu[kind] for sale in warm) for kind in warm[0].cpu},
    )


def new_coupon(quantity: int, admission: str = "queue") -> Coupon:
    """Create an open coupon of a new type."""
    coupon, _ = coupon_create(
        coupon_type=f"SALE_{secrets.token_hex(4)}",
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
