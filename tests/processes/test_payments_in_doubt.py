"""Processes that die, hang or lose the database between asking for money and noting it: the sweep settles it."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from django.conf import settings
from django.db import connection, transaction
from django.db.backends.postgresql.base import DatabaseWrapper

from couponsite.auth.tokens import issue_access_token
from demo.load_client import encode_request
from demo.processes import WebProcess, procfile_process, wait_until_ready
from devstack import ManagedProcess, wait_until
from devstack.ports import free_port
from kafka_bridge.models import OutboxMessage
from orders.models import Order, Product
from orders.services.placing import OrderItemInput, order_create
from tests.processes.conftest import Web, when_waiting_for_a_lock
from tests.processes.test_commands_that_cannot_start import assert_one_line, plain_lines
from tests.support.calls import assert_prompt, call
from tests.support.gateway import FOLDER_VARIABLE, FolderBooks
from tests.support.service import environment, kill_group, run_command

pytestmark = pytest.mark.django_db(transaction=True)

MINJI = 7
SECONDS = 30.0
LONG_AGO = "2020-01-01T00:00Z"
# A payment on the line when the process died, and one that had gone through by then.
DEATHS = ["hang", "move_and_hang"]


class PaymentProvider:
    """A provider that the processes of a test share."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self.books = FolderBooks(folder)
        self.env = environment(PAYMENT_GATEWAY="tests.support.gateway.FolderGateway", **{FOLDER_VARIABLE: str(folder)})

    def answers(self, name: str) -> None:
        """From now on; the name of one of ``tests.support.gateway.ANSWERS``."""
        (self._folder / "answer").write_text(name)

    def when_asked(self, calls: int = 1) -> None:
        """Wait until so many calls came in."""
        wait_until(lambda: len(self.books.calls()) >= calls, SECONDS, f"not asked {calls} times")


@pytest.fixture
def provider(tmp_path: Path) -> PaymentProvider:
    return PaymentProvider(tmp_path / "provider")


@pytest.fixture
def sweeper(provider: PaymentProvider, tmp_path: Path) -> Iterator[ManagedProcess]:
    """The process ``orders`` of the Procfile, sweeping every second, not started yet."""
    process = procfile_process("orders", provider.env, tmp_path / "orders.log", arguments=("--every", "1"))
    yield process
    try:
        process.stop()
    except RuntimeError:
        return
    print(process.log_tail(40))


@pytest.fixture
def web(provider: PaymentProvider, tmp_path: Path) -> Iterator[Web]:
    """A web process of the test's own, with that provider."""
    port = free_port()
    env = {**provider.env, "PORT": str(port), "HOST": "127.0.0.1", "WEB_CONCURRENCY": "1"}
    process = WebProcess(env, tmp_path / "web.log")
    with process:
        wait_until_ready(process, port)
        yield Web(process, port)


def place() -> int:
    product = Product.objects.create(name="tea", price=1000)
    return order_create(user_id=MINJI, items=[OrderItemInput(product.id, 2)]).order_id


def let_time_to_pay_end(order_id: int) -> None:
    Order.objects.filter(id=order_id).update(expires_at=LONG_AGO)


def let_lease_lapse(order_id: int) -> None:
    assert Order.objects.filter(id=order_id, status="PAYING").update(paying_until=LONG_AGO)


def when_status(order_id: int, status: str) -> None:
    wait_until(lambda: status_of(order_id) == status, SECONDS, f"order {order_id} does not become {status}")


def status_of(order_id: int) -> str:
    return Order.objects.get(id=order_id).status


def assert_paid_once(provider: PaymentProvider, order_id: int) -> None:
    assert status_of(order_id) == "PAID"
    assert provider.books.movements() == {f"charge-{order_id}"}
    assert OutboxMessage.objects.filter(event_type="order.completed.v1", key=str(order_id).encode()).count() == 1


def test_a_provider_that_hangs_keeps_nothing_from_others(provider: PaymentProvider, web: Web) -> None:
    provider.answers("hang")
    more_than_slots = 20
    with ExitStack() as stack:
        for order_id in [place() for _ in range(more_than_slots)]:
            client = stack.enter_context(socket.create_connection(("127.0.0.1", web.port)))
            headers = {"authorization": f"Bearer {issue_access_token(MINJI)}"}
            client.sendall(encode_request("POST", f"/api/v1/orders/{order_id}/pay", web.port, headers, {}))
        provider.when_asked(more_than_slots)
        assert_prompt([call(web.port, "GET", path, user=MINJI) for path in ("/api/v1/coupons", "/readyz", "/livez")])
    kill_group(web.process)


def test_one_sweep_expires_what_nobody_paid_and_says_what_it_did(provider: PaymentProvider) -> None:
    late, in_time = place(), place()
    let_time_to_pay_end(late)
    ended = run_command("expire_orders", env=provider.env)
    assert (ended.returncode, plain_lines(ended.stdout)) == (
        0,
        ["1 orders expired, 0 payments settled, 0 refunds settled"],
    )
    assert [status_of(late), status_of(in_time)] == ["EXPIRED", "PENDING"]


def test_one_sweep_that_loses_the_database_says_so_in_one_line(provider: PaymentProvider, tmp_path: Path) -> None:
    argv = [sys.executable, "manage.py", "expire_orders"]
    once = ManagedProcess("once", argv, {**os.environ, **provider.env}, settings.BASE_DIR, tmp_path / "once.log")
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("LOCK TABLE orders_order IN ACCESS EXCLUSIVE MODE")
        with once:
            for backend in when_waiting_for_a_lock("expire_orders"):
                cursor.execute("SELECT pg_terminate_backend(%s)", [backend])
            assert once.wait(SECONDS) == 1
    (line,) = plain_lines(once.log_path.read_text())
    assert "run it again" in line


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_sweeper_goes_on_until_it_is_told_to_stop(sweeper: ManagedProcess, number: signal.Signals) -> None:
    sweeper.start()
    for _ in range(2):
        order_id = place()
        let_time_to_pay_end(order_id)
        when_status(order_id, "EXPIRED")
    sweeper.send_signal(number)
    assert sweeper.wait(10) == 0


@pytest.mark.parametrize("death", DEATHS)
def test_a_sweeper_killed_while_it_asks_about_a_payment_leaves_it_to_the_next(
    sweeper: ManagedProcess, provider: PaymentProvider, death: str
) -> None:
    order_id = place()
    Order.objects.filter(id=order_id).update(status="PAYING", paying_until=LONG_AGO)
    provider.answers(death)
    sweeper.start()
    provider.when_asked()
    sweeper.kill()

    provider.answers("approve")
    sweeper.start()
    other = place()
    let_time_to_pay_end(other)
    when_status(other, "EXPIRED")
    # Until its lease has lapsed the call counts as being on the line.
    assert provider.books.calls() == [f"charge {order_id}"]
    let_lease_lapse(order_id)
    when_status(order_id, "PAID")
    assert_paid_once(provider, order_id)


@pytest.mark.parametrize("death", DEATHS)
def test_a_web_process_killed_while_it_waits_for_the_provider_leaves_the_payment_to_the_sweep(
    web: Web, provider: PaymentProvider, token: Callable[..., dict[str, str]], death: str
) -> None:
    order_id = place()
    provider.answers(death)
    client = threading.Thread(target=post_and_be_cut_off, args=(web.port, f"/api/v1/orders/{order_id}/pay", token))
    client.start()
    provider.when_asked()
    kill_group(web.process)
    client.join(SECONDS)
    assert status_of(order_id) == "PAYING"

    let_lease_lapse(order_id)
    provider.answers("approve")
    assert "1 payments settled" in run_command("expire_orders", env=provider.env).stdout
    assert_paid_once(provider, order_id)


def post_and_be_cut_off(port: int, path: str, token: Callable[..., dict[str, str]]) -> None:
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    client.request("POST", path, headers=token(MINJI))
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        client.getresponse()


class Door:
    """Access to the database: all sessions but this test's can be shut out."""

    def __init__(self) -> None:
        # A session cannot close the database that it is in.
        self._admin = DatabaseWrapper({**connection.settings_dict, "NAME": "postgres"})

    def shut(self) -> None:
        self._allow(False)
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )

    def open(self) -> None:
        self._allow(True)

    def leave(self) -> None:
        self.open()
        self._admin.close()

    def _allow(self, allowed: bool) -> None:
        with self._admin.cursor() as cursor:
            cursor.execute(f'ALTER DATABASE "{connection.settings_dict["NAME"]}" ALLOW_CONNECTIONS {allowed}')


@pytest.fixture
def door() -> Iterator[Door]:
    door = Door()
    yield door
    door.leave()


def test_the_sweeper_waits_for_a_database_that_is_away_and_goes_on(sweeper: ManagedProcess, door: Door) -> None:
    sweeper.start()
    first, second = place(), place()
    let_time_to_pay_end(first)
    when_status(first, "EXPIRED")
    door.shut()
    let_time_to_pay_end(second)
    wait_until(
        lambda: "sweep failed, next attempt in 1 s" in sweeper.log_path.read_text(), SECONDS, "nothing was noticed"
    )
    assert status_of(second) == "PENDING"
    door.open()
    when_status(second, "EXPIRED")
    assert "Traceback" not in sweeper.log_path.read_text()


@pytest.mark.parametrize(
    ("gateway", "complaint"),
    [
        ("no_module.Gateway", "No module named 'no_module'"),
        ("orders.clients.payment.NoGateway", "NoGateway"),
        ("orders.models.Product", "no charge and no refund"),
    ],
)
def test_a_payment_gateway_that_is_none_stops_the_start(gateway: str, complaint: str) -> None:
    ended = run_command("expire_orders", env=environment(PAYMENT_GATEWAY=gateway))
    assert_one_line(ended, "PAYMENT_GATEWAY", gateway, complaint)


def test_a_web_process_does_not_start_without_a_payment_gateway(tmp_path: Path) -> None:
    env = environment(PAYMENT_GATEWAY="no_module.Gateway", PORT="0")
    with WebProcess(env, tmp_path / "web.log") as web:
        assert web.wait(SECONDS) == 1
    (line,) = plain_lines(web.log_path.read_text())
    assert "PAYMENT_GATEWAY" in line


def test_the_sweeper_names_a_database_that_it_cannot_reach() -> None:
    env = environment(DATABASE_URL="postgres://unused@127.0.0.1:9/none")
    assert_one_line(run_command("expire_orders", "--wait", "1", env=env), "PostgreSQL", "port 9")
