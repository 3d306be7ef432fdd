"""``issue_batch`` as a process: killed, stopped, cut off, run twice and run again."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
from django.conf import settings as django_settings
from django.db import connection

from coupons import invariants
from coupons.models import Coupon, IssueRequest, UserCoupon
from devstack import ManagedProcess, wait_until
from kafka_bridge.outbox.writing import OutboxRow, insert_new_rows
from tests.processes.conftest import when_waiting_for_a_lock
from tests.support.service import Service, environment, run_command
from tests.support.threads import OpenTransaction

from .conftest import BATCH_ID, MakeCoupon, Users, batch_of, requested, requested_users

pytestmark = pytest.mark.django_db
# For tests with other sessions than the test's own.
committed = pytest.mark.django_db(transaction=True)


@pytest.fixture
def service(transactional_db: None, topics: str, tmp_path: Path) -> Iterator[Service]:
    """Relay and issuer, once a test starts them."""
    service = Service(tmp_path / "logs", environment())
    yield service
    service.end()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., ManagedProcess]]:
    """Starts the command as a process of its own."""
    started: list[ManagedProcess] = []

    def begin(coupon: Coupon, path: Path, *arguments: str) -> ManagedProcess:
        command = [sys.executable, "manage.py", "issue_batch", coupon.coupon_type, str(path), *arguments]
        log_path = tmp_path / "logs" / f"{len(started)}.log"
        env = {**os.environ, **environment()}
        started.append(ManagedProcess("issue_batch", command, env, django_settings.BASE_DIR, log_path))
        started[-1].start()
        return started[-1]

    yield begin
    for process in started:
        process.stop()
        print(process.log_tail(20))


class HeldAt(OpenTransaction):
    """Holds a batch at a user: another session has inserted that request and neither commits nor rolls back."""

    def __init__(self, coupon: Coupon, user_id: int) -> None:
        row = OutboxRow(batch_of(coupon).request_id(user_id), "coupon.issue.requested.v1", "held", b"", b"{}")
        super().__init__(partial(insert_new_rows, [row]))


def assert_everybody_has_one(users: Users, coupon: Coupon, user_ids: Sequence[int]) -> None:
    """Each user was requested once, has one coupon, and is in the results with it."""
    assert requested_users() == list(user_ids)
    assert sorted(UserCoupon.objects.values_list("user_id", flat=True)) == list(user_ids)
    assert IssueRequest.objects.count() == len(user_ids)
    rows = users.results()
    assert [int(row["userId"]) for row in rows] == list(user_ids)
    assert {(row["status"], row["reason"]) for row in rows} == {("SUCCESS", "")}
    assert [row["requestId"] for row in rows] == [str(batch_of(coupon).request_id(user_id)) for user_id in user_ids]
    assert {name: lines for name, lines in invariants.violations() if lines} == {}


USER_IDS = range(1, 8001)


@committed
def test_a_batch_killed_in_the_middle_is_run_again_and_everybody_has_one_coupon(
    users: Users, make_coupon: MakeCoupon, service: Service, start: Callable[..., ManagedProcess]
) -> None:
    coupon = make_coupon(total_quantity=len(USER_IDS))
    users.write(*USER_IDS)
    service.start("relay")
    service.start("issuer")
    with HeldAt(coupon, 4500):
        killed = start(coupon, users.path, "--id", BATCH_ID)
        when_waiting_for_a_lock("issue_batch")
        killed.kill()
    assert len(requested()) == 4000
    assert not users.results_path.exists()
    assert start(coupon, users.path, "--id", BATCH_ID).wait(60) == 0
    assert_everybody_has_one(users, coupon, USER_IDS)
    assert [path.name for path in users.path.parent.glob("users*")] == ["users.csv", "users.results.csv"]


@committed
def test_a_batch_that_is_asked_to_end_does_so_with_0_and_goes_on_when_it_is_run_again(
    users: Users, make_coupon: MakeCoupon, service: Service, start: Callable[..., ManagedProcess]
) -> None:
    coupon = make_coupon(total_quantity=len(USER_IDS))
    users.write(*USER_IDS)
    with HeldAt(coupon, 4500) as held:
        process = start(coupon, users.path, "--id", BATCH_ID)
        when_waiting_for_a_lock("issue_batch")
        process.send_signal(signal.SIGTERM)
        held.rollback()
        assert process.wait(20) == 0
    # The chunk at hand was finished.
    assert len(requested()) == 5000
    assert "stopped at line 5000 of 8000: run the same again" in process.log_tail(5)

    waiting = start(coupon, users.path, "--id", BATCH_ID)
    wait_until(lambda: len(requested()) == len(USER_IDS), 30, "not all were accepted")
    wait_until(lambda: "accepted: 8000 of 8000" in waiting.log_tail(5), 30, "it does not wait for results")
    waiting.send_signal(signal.SIGTERM)
    assert waiting.wait(20) == 0
    assert not list(users.path.parent.glob("users.results*"))

    service.start("relay")
    service.start("issuer")
    assert start(coupon, users.path, "--id", BATCH_ID).wait(60) == 0
    assert_everybody_has_one(users, coupon, USER_IDS)


@committed
def test_a_batch_whose_connection_is_lost_goes_on(
    users: Users, make_coupon: MakeCoupon, start: Callable[..., ManagedProcess]
) -> None:
    coupon = make_coupon()
    users.write(*USER_IDS)
    with HeldAt(coupon, 4500) as held:
        process = start(coupon, users.path, "--id", BATCH_ID, "--no-wait")
        for backend in when_waiting_for_a_lock("issue_batch"):
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_terminate_backend(%s)", [backend])
        wait_until(lambda: "the batch waits" in process.log_tail(), 10, "nothing was told")
        held.rollback()
        assert process.wait(30) == 0
    assert requested_users() == list(USER_IDS)


@committed
def test_two_runs_at_once_do_not_write_one_file(
    users: Users, make_coupon: MakeCoupon, start: Callable[..., ManagedProcess]
) -> None:
    coupon = make_coupon()
    users.write(1, 2)
    first = start(coupon, users.path)
    wait_until(lambda: len(requested()) == 2, 30, "nothing was accepted")
    ended = run_command("issue_batch", coupon.coupon_type, str(users.path), env=environment())
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith("CommandError: another run writes")
    assert first.poll() is None


@committed
def test_on_a_terminal_there_is_a_bar(users: Users, make_coupon: MakeCoupon) -> None:
    users.write(1, 2)
    terminal, end = pty.openpty()
    try:
        subprocess.run(
            [sys.executable, "manage.py", "issue_batch", make_coupon().coupon_type, str(users.path), "--no-wait"],
            cwd=django_settings.BASE_DIR,
            env={**os.environ, **environment(), "TERM": "xterm"},
            stdout=subprocess.DEVNULL,
            stderr=end,
            timeout=30,
            check=True,
        )
        shown = os.read(terminal, 100_000).decode()
    finally:
        os.close(terminal)
        os.close(end)
    assert "━" in shown
    assert "2/2" in shown


def test_an_unreachable_database_is_one_line(users: Users) -> None:
    users.write(1)
    env = environment(DATABASE_URL="postgres://unused@127.0.0.1:9/none")
    ended = run_command("issue_batch", "SPRING", str(users.path), "--wait", "1", env=env)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert "PostgreSQL does not answer" in ended.stderr.splitlines()[-1]
