"""``issue_batch``: everybody in the file is asked for once, however often it is run and wherever it was ended."""

from __future__ import annotations

import csv
import json
import os
import pty
import signal
import subprocess
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.conf import settings as django_settings
from django.core.management import CommandError, call_command
from django.db import connection
from hypothesis import given
from hypothesis import strategies as st

from common.processes.lifecycle import StopFlag
from coupons import invariants
from coupons.bulk_issue import run as bulk_run
from coupons.bulk_issue.input_file import BadUserFile, UserFile
from coupons.bulk_issue.run import BatchRun
from coupons.consumer_groups import ISSUE
from coupons.controls import coupon_close, coupon_open, coupon_restock
from coupons.coupon_cache import coupon_cache
from coupons.issuance import accept_bulk
from coupons.issuance.accept_bulk import BulkIssue
from coupons.models import Coupon, IssueRequest, UserCoupon
from devstack import ManagedProcess, wait_until
from kafka_bridge.consuming.batch import BatchHandler
from kafka_bridge.models import OutboxMessage
from kafka_bridge.outbox.writing import OutboxRow, insert_new_rows
from tests.processes.conftest import when_waiting_for_a_lock
from tests.support.messages import message
from tests.support.service import Service, environment, run_command
from tests.support.threads import OpenTransaction, in_another_session

pytestmark = pytest.mark.django_db
# For tests with other sessions than the test's own.
committed = pytest.mark.django_db(transaction=True)

MakeCoupon = Callable[..., Coupon]

BATCH_ID = "spring"
PAST, FUTURE = "2020-01-01T00:00:00Z", "2099-01-01T00:00:00Z"


class Users:
    """A file of users in a folder of the test's own, and the command on it."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.path = folder / "users.csv"
        self.results_path = folder / "users.results.csv"
        self._capsys = capsys

    def write(self, *lines: object) -> None:
        self.path.write_text("\n".join(["userId", *map(str, lines)]) + "\n")

    def issue(self, coupon: Coupon, *arguments: str) -> dict[str, Any]:
        """Run the command in this process; what it prints."""
        self._capsys.readouterr()
        call_command("issue_batch", coupon.coupon_type, str(self.path), *arguments)
        (line,) = self._capsys.readouterr().out.splitlines()
        printed: dict[str, Any] = json.loads(line)
        return printed

    def accept(self, coupon: Coupon, *arguments: str) -> int:
        return int(self.issue(coupon, "--no-wait", *arguments)["accepted"])

    def results(self) -> list[dict[str, str]]:
        with self.results_path.open(newline="") as file:
            return list(csv.DictReader(file))


@pytest.fixture
def users(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Users:
    return Users(tmp_path, capsys)


def requested() -> list[dict[str, Any]]:
    """The bodies of the requests in the outbox, in their order."""
    rows = OutboxMessage.objects.filter(event_type="coupon.issue.requested.v1").order_by("id")
    return [json.loads(bytes(row.payload or b"")) for row in rows]


def requested_users() -> list[int]:
    return sorted(body["userId"] for body in requested())


def decide_everything() -> None:
    """What relay and issuer do with the requests in the outbox."""
    BatchHandler(ISSUE).handle([message(body) for body in requested()], StopFlag())


def close(coupon: Coupon) -> None:
    coupon_close(id_or_type=coupon.id, actor="olga")
    # Otherwise it takes up to a second.
    coupon_cache.clear()


def batch_of(coupon: Coupon, batch_id: str = BATCH_ID) -> BulkIssue:
    return BulkIssue(coupon.id, coupon.coupon_type, batch_id)


# What is asked for.


def test_a_request_of_source_batch_is_accepted_for_everybody(users: Users, make_coupon: MakeCoupon) -> None:
    coupon = make_coupon()
    users.write(5, 2**63 - 1, 1)
    printed = users.issue(coupon, "--no-wait", "--id", BATCH_ID)
    assert printed == {
        "couponId": coupon.id, "couponType": coupon.coupon_type, "batchId": BATCH_ID,
        "accepted": 3, "repeated": 0, "invalid": 0, "outcomes": {}, "results": None,
    }  # fmt: skip
    for body in requested():
        assert body["requestId"] == str(batch_of(coupon).request_id(body["userId"]))
        assert (body["couponId"], body["couponType"], body["source"]) == (coupon.id, coupon.coupon_type, "BATCH")
    assert requested_users() == [1, 5, 2**63 - 1]
    decide_everything()
    assert set(IssueRequest.objects.values_list("status", "source")) == {("SUCCESS", "BATCH")}
    assert not users.results_path.exists()


def test_the_same_file_again_asks_for_nobody(users: Users, make_coupon: MakeCoupon) -> None:
    coupon = make_coupon()
    users.write(*range(1, 2501))
    assert users.accept(coupon) == 2500
    assert users.accept(coupon) == 0
    decide_everything()
    # Answered requests leave the outbox in time.
    OutboxMessage.objects.all().delete()
    assert users.accept(coupon) == 0
    assert not OutboxMessage.objects.exists()


def test_without_ids_of_the_batch_the_same_file_again_would_ask_for_everybody(
    users: Users, make_coupon: MakeCoupon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accept_bulk.BulkIssue, "request_id", lambda *_: uuid4())
    coupon = make_coupon()
    users.write(1, 2)
    assert (users.accept(coupon), users.accept(coupon)) == (2, 2)


def test_who_is_in_the_file_twice_is_asked_for_once(users: Users, make_coupon: MakeCoupon) -> None:
    users.write(7, 8, 7, *range(1000, 2000), 7)
    assert users.issue(make_coupon(), "--no-wait")["repeated"] == 2
    assert requested_users() == [7, 8, *range(1000, 2000)]


def test_a_longer_file_under_the_same_id_asks_for_the_new_users_only(users: Users, make_coupon: MakeCoupon) -> None:
    coupon = make_coupon()
    users.write(1, 2)
    assert users.accept(coupon, "--id", BATCH_ID) == 2
    users.write(1, 2, 3)
    assert users.accept(coupon, "--id", BATCH_ID) == 1


def test_two_coupons_and_two_batches_of_one_file_do_not_share_requests(users: Users, make_coupon: MakeCoupon) -> None:
    first, second = make_coupon(), make_coupon()
    users.write(1)
    assert [users.accept(first), users.accept(second), users.accept(first, "--id", "again")] == [1, 1, 1]
    assert len({body["requestId"] for body in requested()}) == 3


@given(
    user_ids=st.lists(st.integers(1, 2**63 - 1) | st.sampled_from([1, 2**62 - 1, 2**62, 2**63 - 1]), unique=True),
    batch_id=st.text(min_size=1),
)
def test_every_user_of_a_batch_has_an_id(user_ids: list[int], batch_id: str) -> None:
    batch = BulkIssue(1, "SPRING", batch_id.encode("utf-8", "replace").decode())
    ids = [batch.request_id(user_id) for user_id in user_ids]
    assert len(set(ids)) == len(user_ids)
    assert all((one.version, one.variant) == (8, UUID(int=2 << 62).variant) for one in ids)
    assert not {BulkIssue(2, "SPRING", batch.batch_id).request_id(user_id) for user_id in user_ids} & set(ids)


# The results.


@pytest.mark.parametrize("text", ['=HYPERLINK("http://h","x")', "+1", "-5", "@SUM(1)", '"\t=1"'])
def test_a_spreadsheet_finds_no_formula_in_the_results(users: Users, make_coupon: MakeCoupon, text: str) -> None:
    coupon = make_coupon()
    users.write(text, 1)
    users.accept(coupon)
    decide_everything()
    users.issue(coupon)
    cells = [cell for row in users.results() for cell in row.values()]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    invalid, valid = users.results()
    assert (invalid["userId"][:1], invalid["status"]) == ("'", "INVALID")
    [request] = requested()
    assert (valid["userId"], valid["requestId"]) == ("1", request["requestId"])


def test_the_results_tell_how_every_line_ended(users: Users, make_coupon: MakeCoupon) -> None:
    coupon = make_coupon(total_quantity=2)
    users.write(3, 1, "x,y", 3, 2)
    users.accept(coupon)
    decide_everything()
    printed = users.issue(coupon)
    ids = {body["userId"]: body["requestId"] for body in requested()}
    won = set(UserCoupon.objects.values_list("user_id", flat=True))
    assert len(won) == 2

    def row(user_id: int) -> dict[str, str]:
        status, reason = ("SUCCESS", "") if user_id in won else ("FAILED", "SOLD_OUT")
        return {"userId": str(user_id), "requestId": ids[user_id], "status": status, "reason": reason}

    invalid = {
        "userId": "x,y", "requestId": "", "status": "INVALID", "reason": "line 4 is not a positive 64-bit integer"
    }  # fmt: skip
    assert users.results() == [row(3), row(1), invalid, row(3), row(2)]
    assert printed["results"] == str(users.results_path)
    assert printed["outcomes"] == Counter(one["reason"] or one["status"] for one in map(row, (3, 1, 3, 2))) | {
        "INVALID": 1
    }
    assert [path.name for path in users.path.parent.iterdir()] == ["users.csv", "users.results.csv"]


def test_after_a_restock_another_id_asks_again_for_who_was_sold_out(users: Users, make_coupon: MakeCoupon) -> None:
    coupon = make_coupon(total_quantity=1)
    users.write(1, 2)
    for batch_id in ("first", "second"):
        users.accept(coupon, "--id", batch_id)
        decide_everything()
        coupon_restock(id_or_type=coupon.id, quantity=1, actor="olga")
    users.issue(coupon, "--id", "first")
    assert [row["reason"] for row in users.results()] == ["", "SOLD_OUT"]
    users.issue(coupon, "--id", "second")
    assert [row["reason"] for row in users.results()] == ["ALREADY_ISSUED", ""]


@pytest.mark.parametrize("name", ["no-such-folder/results.csv", "users.csv", "."])
def test_results_that_cannot_be_written_are_told_before_anything_is_accepted(
    users: Users, make_coupon: MakeCoupon, name: str
) -> None:
    users.write(1)
    with pytest.raises(CommandError, match="--results"):
        users.issue(make_coupon(), "--results", str(users.path.parent / name))
    assert requested() == []
    assert users.path.read_text() == "userId\n1\n"


# The file.


@pytest.mark.parametrize(
    "content",
    [
        b"userId\n1\n22\n",
        b"userId\n1\n22",
        b"\xef\xbb\xbfuserId\r\n1\r\n22\r\n",
        b'"userId"\n"1"\n"22"\n',
        b" userId \n\n 1\n\n\n22 \n\n",
    ],
)
def test_files_as_programs_write_them_are_read(users: Users, make_coupon: MakeCoupon, content: bytes) -> None:
    users.path.write_bytes(content)
    assert users.issue(make_coupon(), "--no-wait")["invalid"] == 0
    assert requested_users() == [1, 22]


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"user_id\n1\n", b"userId,name\n1,a\n", b"1\n2\n", "userId\n1\n".encode("utf-16"), b"x" * 5_000_000],
)
def test_a_wrong_header_is_one_clear_error(users: Users, make_coupon: MakeCoupon, content: bytes) -> None:
    users.path.write_bytes(content)
    with pytest.raises(CommandError, match="the first line must be userId, not '") as caught:
        users.issue(make_coupon())
    assert len(str(caught.value)) < 300
    assert [path.name for path in users.path.parent.iterdir()] == ["users.csv"]


def test_what_is_not_a_file_is_told(users: Users, make_coupon: MakeCoupon) -> None:
    coupon = make_coupon()
    with pytest.raises(CommandError, match="No such file"):
        users.issue(coupon)
    users.path.mkdir()
    with pytest.raises(CommandError, match="directory"):
        users.issue(coupon)


@pytest.mark.parametrize(
    "text", ["0", "-1", "+1", "1.0", "1e3", str(2**63), "9" * 30, "seven", "1,2", '"', "\0", "\uff11", "1" * 5000]
)
def test_a_bad_line_is_told_with_its_number_and_stops_nobody_else(
    users: Users, make_coupon: MakeCoupon, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    users.write(1, "", text, 2)
    assert users.issue(make_coupon(), "--no-wait")["invalid"] == 1
    assert requested_users() == [1, 2]
    (told,) = [line for line in caplog.messages if "is not a positive 64-bit integer" in line]
    assert told.startswith("line 4 ")
    assert len(told) < 120


def test_of_many_bad_lines_some_are_told(
    users: Users, make_coupon: MakeCoupon, caplog: pytest.LogCaptureFixture
) -> None:
    users.write(*["x"] * 3000)
    assert users.issue(make_coupon())["outcomes"] == {"INVALID": 3000}
    assert len([line for line in caplog.messages if "64-bit" in line]) == 20
    assert len(users.results()) == 3000


def test_a_file_that_is_changed_meanwhile_is_told(users: Users) -> None:
    users.write(1, 2)
    with UserFile(users.path) as file:
        lines = file.lines()
        next(lines)
        with users.path.open("a") as appended:
            appended.write("3\n")
        with pytest.raises(BadUserFile, match="changed"):
            list(lines)


def test_a_large_file_does_not_fill_the_memory(users: Users) -> None:
    with users.path.open("w") as file:
        file.write("userId\n")
        file.writelines(f"{number}\n" for number in range(1, 200_001))
        file.write("1" * 20_000_000)
    tracemalloc.start()
    try:
        with UserFile(users.path) as users_file:
            total, _ = users_file.count_lines(StopFlag())
            assert sum(1 for line in users_file.lines() if line.user_id) == 200_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert total == 200_001
    assert peak < 10_000_000


# The door.


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"opens_at": FUTURE}, "opens at"),
        ({"paused": True}, "paused"),
        ({"closes_at": "2020-01-02T00:00:00Z"}, "closed"),
    ],
)
def test_a_coupon_that_is_not_open_is_told(
    users: Users, make_coupon: MakeCoupon, changes: dict[str, Any], words: str
) -> None:
    users.write(1)
    with pytest.raises(CommandError, match=words):
        users.issue(make_coupon(**changes))
    assert requested() == []


def test_a_coupon_that_does_not_exist_is_told(users: Users) -> None:
    users.write(1)
    with pytest.raises(CommandError, match="There is no coupon 'NOBODYS'"):
        call_command("issue_batch", "NOBODYS", str(users.path))


def test_a_batch_that_was_accepted_in_time_is_answered_after_the_end(users: Users, make_coupon: MakeCoupon) -> None:
    coupon = make_coupon()
    users.write(1, 2)
    users.accept(coupon, "--id", BATCH_ID)
    close(coupon)
    assert users.accept(coupon, "--id", BATCH_ID) == 0
    decide_everything()
    users.issue(coupon, "--id", BATCH_ID)
    assert [row["status"] for row in users.results()] == ["SUCCESS", "SUCCESS"]
    users.write(1, 2, 3)
    with pytest.raises(CommandError, match="closed"):
        users.accept(coupon, "--id", BATCH_ID)
    assert requested_users() == [1, 2]


def test_a_batch_that_is_shut_out_midway_says_where_and_goes_on_when_the_coupon_is_open(
    users: Users, make_coupon: MakeCoupon, monkeypatch: pytest.MonkeyPatch
) -> None:
    coupon = make_coupon(total_quantity=5000)
    monkeypatch.setattr(bulk_run, "_CHUNK", 10)
    users.write(*range(1, 26))
    users.accept(coupon, "--id", BATCH_ID)
    OutboxMessage.objects.filter(event_id=batch_of(coupon).request_id(15)).delete()
    close(coupon)
    with pytest.raises(CommandError, match=r"closed\. The batch is at line 10 of 25: run the same again"):
        users.accept(coupon, "--id", BATCH_ID)
    coupon_open(id_or_type=coupon.id, actor="olga")
    coupon_cache.clear()
    assert users.accept(coupon, "--id", BATCH_ID) == 1
    assert requested_users() == list(range(1, 26))


@committed
def test_a_batch_waits_while_the_outbox_is_half_full_and_leaves_the_door_open(
    users: Users, make_coupon: MakeCoupon, settings: Any, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(bulk_run, "_CHUNK", 10)
    monkeypatch.setattr(bulk_run, "_SAMPLE_SECONDS", 0.0)
    settings.OUTBOX_MAX_DEPTH = 100
    users.write(*range(1, 101))
    with UserFile(users.path) as file:
        run = BatchRun(batch_of(make_coupon()), stop=(stop := StopFlag()))
        running = in_another_session(lambda: run.accept(file.lines(), lambda done: None))
        try:
            wait_until(lambda: "the batch waits: More than 50" in caplog.text, 10, "the batch did not wait")
            assert len(requested()) == 60
            assert not running.done()
            OutboxMessage.objects.update(published_at=PAST)
            wait_until(lambda: len(requested()) == 100, 10, "the batch did not go on")
            running.result(10)
        finally:
            stop.request()


# As a process.


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
    """Everybody was asked for once, has one coupon, and stands in the results with it."""
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
    wait_until(lambda: len(requested()) == len(USER_IDS), 30, "not everybody was accepted")
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
    env = environment(DATABASE_URL="postgres://nobody@127.0.0.1:9/none")
    ended = run_command("issue_batch", "SPRING", str(users.path), "--wait", "1", env=env)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert "PostgreSQL does not answer" in ended.stderr.splitlines()[-1]
