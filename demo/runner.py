"""The flash sale of the demo: starts the processes, runs the sale and the orders, and keeps the web server running."""

from __future__ import annotations

import logging
from pathlib import Path

from rich.console import Console

from demo.environment import DemoEnvironment, choose_web_port
from demo.orders import OrderOutcome, OrderRound
from demo.processes import WebProcess, procfile_process
from demo.report import print_orders, print_outcome, progress_bar
from demo.sale import FlashSale, Outcome, Size
from devstack import ManagedProcess

_SAMPLE = 300
_STORIES = "the five documents: make demo SEED=000, SEED=001, SEED=002, SEED=003 or SEED=004"


class Demo:
    """The demo from the empty database to the verdict; it stops processes and deletes topics however it ends."""

    def __init__(self, *, size: Size, orders: int, issuers: int, log_folder: Path, console: Console) -> None:
        self._size = size
        self._orders = orders
        self._issuers = issuers
        self._environment = DemoEnvironment(log_folder, console)
        self._say = self._environment.say
        self._console = console

    def run(self, *, stay: bool) -> bool:
        """Run the demo and return whether every check passed; with ``stay`` keep serving until interrupted.

        Raises ServiceUnavailable when a service does not answer and TimeoutError when the web process does not.
        """
        # Records of what operators do, as the creation of the coupons, would stand between the lines of the demo.
        self._environment.log_own_lines(logging.WARNING)
        port = choose_web_port()
        login = self._environment.prepare()
        env = {"PORT": str(port), "HOST": "127.0.0.1"}
        web = WebProcess(env, self._environment.log("web"))
        with self._environment.topics(), self._environment.running(web, self._processes(env), port):
            self._say(f"the sale: {self._size.requests} requests of {self._size.users} users")
            outcome = FlashSale(self._size, port).run(
                progress_bar(self._console, "answered", self._size.requests),
                progress_bar(self._console, "results", self._size.requests),
                sample=_SAMPLE,
            )
            print_outcome(self._console, outcome)
            orders = self._run_orders(port, outcome)
            held = self._verdict(outcome, orders)
            self._say(_STORIES)
            if stay:
                self._environment.stay(port, login)
        return held

    def _processes(self, env: dict[str, str]) -> list[ManagedProcess]:
        log = self._environment.log
        issuers = [f"issuer-{number}" for number in range(1, self._issuers + 1)]
        return [
            procfile_process("relay", env, log("relay")),
            *(procfile_process("issuer", env, log(name), name=name) for name in issuers),
            *(procfile_process(role, env, log(role)) for role in ("effects", "orders", "reconciler", "housekeeper")),
        ]

    def _run_orders(self, port: int, sale: Outcome) -> OrderOutcome:
        self._say(f"the shop: {self._orders} orders")
        outcome = OrderRound(port, sale.coupons, count=self._orders).run(
            progress_bar(self._console, "paid", self._orders)
        )
        print_orders(self._console, outcome)
        return outcome

    def _verdict(self, outcome: Outcome, orders: OrderOutcome) -> bool:
        self._say(f"{outcome.sampled} statuses read through the API and compared with PostgreSQL")
        for line in (complaints := [*outcome.complaints, *orders.complaints]):
            self._say(f"FAIL {line}")
        if not outcome.complaints:
            self._say("ok   every accepted request has one result, all stock is issued, no user has a coupon twice")
        if not orders.complaints:
            self._say("ok   every effect has processed every paid order, and the ranking shows what was sold")
        if not self._environment.invariants_hold():
            return False
        self._say("verdict: " + ("something does not hold" if complaints else "everything holds"))
        return not complaints
