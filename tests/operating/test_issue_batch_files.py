"""The file that ``issue_batch`` reads, and the results that it writes."""

from __future__ import annotations

import tracemalloc
from collections import Counter

import pytest
from django.core.management import CommandError

from common.processes.lifecycle import StopFlag
from coupons.bulk_issue.input_file import BadUserFile, UserFile
from coupons.controls import Action, coupon_control
from coupons.models import UserCoupon

from .conftest import MakeCoupon, Users, decide_everything, requested, requested_users

pytestmark = pytest.mark.django_db


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
        coupon_control(action=Action.RESTOCK, id_or_type=coupon.id, quantity=1, actor="olga")
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
