"""The whole demo: prepares the services, starts the processes, runs the sale and keeps the web server running."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.core.management.base import CommandError
from rich.console import Console

from common.processes.lifecycle import StopFlag, check_database, first_line, wait_for
from common.processes.outages import ServiceUnavailable
from demo.orders import OrderOutcome, OrderRound
from demo.processes import Supervisor, WebProcess, procfile_process, wait_until_ready
from demo.report import print_orders, print_outcome, progress_bar
from demo.sale import FlashSale, Outcome, Size
from devstack.ports import free_port, is_free
from kafka_bridge.client import check_kafka, delete_topics, ensure_topics

_ADMIN_NAME = "demo-admin"
_SERVICE_SECONDS = 30.0
_SAMPLE = 300
_USUAL_PORT = 8000


@dataclass(frozen=True, slots=True)
class Login:
    name: str
    password: str


class Demo:
    """The demo from the empty database to the verdict; it stops processes and deletes topics however it ends."""

    def __init__(self, *, size: Size, orders: int, issuers: int, log_folder: Path, console: Console) -> None:
        self._size = size
        self._orders = orders
        self._issuers = issuers
        self._log_folder = log_folder
        self._console = console

    def run(self, *, stay: bool) -> bool:
        """Run the demo and return whether every check passed; with ``stay`` keep serving until interrupted.

        Raises ServiceUnavailable when a service does not answer and TimeoutError when the web process does not.
        """
        port = _web_port()
        login = self._prepare()
        with self._topics(), self._running(port):
            outcome = FlashSale(self._size, port).run(
                progress_bar(self._console, "answered", self._size.requests),
                progress_bar(self._console, "results", self._size.requests),
                sample=_SAMPLE,
            )
            print_outcome(self._console, outcome)
            orders = self._run_orders(port, outcome)
            held = self._verdict(outcome, orders)
            if stay:
                self._show_addresses(port, login)
                with suppress(KeyboardInterrupt):
                    while True:
                        time.sleep(1)
        return held

    def _run_orders(self, port: int, sale: Outcome) -> OrderOutcome:
        self._say(f"the shop: {self._orders} orders")
        outcome = OrderRound(port, sale.coupons, count=self._orders).run(
            progress_bar(self._console, "paid", self._orders)
        )
        print_orders(self._console, outcome)
        return outcome

    def _say(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _prepare(self) -> Login:
        self._say("migrating the database")
        wait_for(check_database, _SERVICE_SECONDS, StopFlag())
        call_command("migrate", verbosity=0, interactive=False)
        return _make_admin_login()

    @contextmanager
    def _topics(self) -> Iterator[None]:
        """Create the missing topics, and delete those at the end."""
        self._say("creating the topics")
        wait_for(check_kafka, _SERVICE_SECONDS, StopFlag())
        created, complaints = ensure_topics(settings.KAFKA_ROUTES)
        try:
            if complaints:
                raise ServiceUnavailable("; ".join(complaints))
            yield
        finally:
            try:
                delete_topics(created)
            except ServiceUnavailable as error:
                self._say(first_line(error))

    @contextmanager
    def _running(self, port: int) -> Iterator[None]:
        env = {"PORT": str(port), "HOST": "127.0.0.1"}
        web = WebProcess(env, self._log("web"))
        relay = procfile_process("relay", env, self._log("relay"))
        issuers = [
            procfile_process("issuer", env, self._log(f"issuer-{number}"), name=f"issuer-{number}")
            for number in range(1, self._issuers + 1)
        ]
        others = [
            procfile_process(role, env, self._log(role)) for role in ("effects", "orders", "reconciler", "housekeeper")
        ]
        self._say(
            f"starting web, site, relay, {self._issuers} issuers, effects, orders, reconciler and housekeeper;"
            f" their logs are in {self._log_folder}"
        )
        with Supervisor([web.site, web, relay, *issuers, *others], self._say):
            wait_until_ready(web, port)
            self._say(f"the sale: {self._size.requests} requests of {self._size.users} users")
            yield
            self._say("stopping")

    def _log(self, name: str) -> Path:
        path = self._log_folder / f"{name}.log"
        path.unlink(missing_ok=True)
        return path

    def _verdict(self, outcome: Outcome, orders: OrderOutcome) -> bool:
        self._say(f"{outcome.sampled} statuses read through the API and compared with PostgreSQL")
        for line in (complaints := [*outcome.complaints, *orders.complaints]):
            self._say(f"FAIL {line}")
        if not outcome.complaints:
            self._say("ok   every accepted request has one result, all stock is issued, no user has a coupon twice")
        if not orders.complaints:
            self._say("ok   every effect has processed every paid order, and the ranking shows what was sold")
        try:
            output = StringIO()
            call_command("check_invariants", stdout=output)
        except CommandError as error:
            self._say(output.getvalue().rstrip())
            self._say(f"verdict: {error}")
            return False
        self._say(output.getvalue().rstrip())
        self._say("verdict: " + ("something does not hold" if complaints else "everything holds"))
        return not complaints

    def _show_addresses(self, port: int, login: Login) -> None:
        site = f"http://localhost:{port}"
        self._say(f"shopper's page  {site}/")
        self._say(f"admin           {site}/admin/    name {login.name}, password {login.password}")
        self._say(f"operators       {site}/ops/      with the same login")
        self._say(f"API             {site}/api/docs")
        self._say("Ctrl-C ends it; until then, `kill -9` any process and see it restart")


def _web_port() -> int:
    wanted = os.environ.get("PORT", "")
    if not wanted:
        return _USUAL_PORT if is_free(_USUAL_PORT) else free_port()
    if not (wanted.isascii() and wanted.isdigit() and is_free(int(wanted))):
        raise ServiceUnavailable(f"PORT {wanted} is in use or not a port number: choose another, or leave it unset")
    return int(wanted)


def _make_admin_login() -> Login:
    # On a database of an earlier run the user exists: it gets a new password.
    login = Login(_ADMIN_NAME, secrets.token_urlsafe(9))
    user, _ = get_user_model().objects.get_or_create(username=login.name)
    user.is_staff = user.is_superuser = True
    user.set_password(login.password)
    user.save()
    return login
