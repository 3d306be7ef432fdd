"""``control_coupon``: every control counts once under its id, and is in effect at the accept API within a second."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.conf import settings as django_settings
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection, transaction
from django.test import Client

from common.api.errors import InvalidRequest
from common.processes.lifecycle import StopFlag
from coupons import controls
from coupons.consumer_groups import ISSUE
from coupons.controls import Action, coupon_control
from coupons.models import Coupon, CouponControl, IssueRequest
from devstack.processes import wait_until
from kafka_bridge.consuming.batch import BatchHandler
from kafka_bridge.models import OutboxMessage
from tests.processes.conftest import when_waiting_for_a_lock
from tests.support.messages import message
from tests.support.service import environment, run_command
from tests.support.threads import OpenTransaction, in_another_session, wait_until_blocked

pytestmark = pytest.mark.django_db

MakeCoupon = Callable[..., Coupon]
Control = Callable[..., dict[str, Any]]

PAST = datetime(2020, 1, 1, tzinfo=UTC)
LONG_AGO = datetime(2019, 1, 1, tzinfo=UTC)
FUTURE = datetime(2099, 1, 1, tzinfo=UTC)

COUPONS: dict[str, dict[str, Any]] = {
    "scheduled": {"opens_at": FUTURE},
    "open": {},
    "open until later": {"closes_at": FUTURE},
    "paused": {"paused": True},
    "sold out": {"total_quantity": 0},
    "closed": {"opens_at": LONG_AGO, "closes_at": PAST},
    "closed in a pause": {"opens_at": LONG_AGO, "closes_at": PAST, "paused": True},
    "scheduled and paused": {"opens_at": FUTURE, "paused": True},
}


@pytest.fixture
def control(capsys: pytest.CaptureFixture[str]) -> Control:
    def run(coupon: Coupon, *arguments: str) -> dict[str, Any]:
        call_command("control_coupon", coupon.coupon_type, *arguments)
        (line,) = capsys.readouterr().out.splitlines()
        answer: dict[str, Any] = json.loads(line)
        return answer

    return run


def window_of(coupon: Coupon) -> tuple[datetime, datetime | None, bool]:
    coupon.refresh_from_db()
    return coupon.opens_at, coupon.closes_at, coupon.paused


def test_the_state_afterwards_is_printed(make_coupon: MakeCoupon, control: Control) -> None:
    coupon = make_coupon(total_quantity=10)
    Coupon.objects.update(issued=4, reserved=1)
    assert control(coupon, "restock", "--quantity", "5", "--reason", "the crowd asks") == {
        "couponId": coupon.id,
        "couponType": coupon.coupon_type,
        "state": "OPEN",
        "totalQuantity": 15,
        "issuedQuantity": 4,
        "remaining": 10,
    }
    row = CouponControl.objects.get()
    assert (row.coupon_id, row.action, row.quantity, row.reason) == (coupon.id, "restock", 5, "the crowd asks")
    assert row.actor.endswith("at the shell")


@pytest.mark.parametrize(
    ("before", "action", "after"),
    [
        ("scheduled", "open", "OPEN"),
        ("paused", "open", "OPEN"),
        ("closed", "open", "OPEN"),
        ("closed in a pause", "open", "OPEN"),
        ("scheduled and paused", "open", "OPEN"),
        ("sold out", "open", "SOLD_OUT"),
        ("open", "pause", "PAUSED"),
        ("sold out", "pause", "PAUSED"),
        ("paused", "resume", "OPEN"),
        ("scheduled and paused", "resume", "SCHEDULED"),
        ("open", "close", "CLOSED"),
        ("open until later", "close", "CLOSED"),
        ("paused", "close", "CLOSED"),
        ("scheduled", "close", "CLOSED"),
    ],
)
def test_a_control_does_what_it_says(
    make_coupon: MakeCoupon, control: Control, before: str, action: str, after: str
) -> None:
    assert control(make_coupon(**COUPONS[before]), action)["state"] == after


@pytest.mark.parametrize(
    ("before", "action"),
    [
        ("open", "open"),
        ("open until later", "open"),
        ("open", "resume"),
        ("scheduled", "resume"),
        ("paused", "pause"),
        ("closed", "close"),
        ("closed in a pause", "close"),
    ],
)
def test_what_is_so_already_stays_as_it_is(make_coupon: MakeCoupon, control: Control, before: str, action: str) -> None:
    coupon = make_coupon(**COUPONS[before])
    unchanged = window_of(coupon)
    control(coupon, action)
    assert window_of(coupon) == unchanged


def test_a_coupon_paused_before_its_time_does_not_open(make_coupon: MakeCoupon, control: Control) -> None:
    coupon = make_coupon(**COUPONS["scheduled"])
    assert control(coupon, "pause")["state"] == "SCHEDULED"
    Coupon.objects.update(opens_at=PAST)
    assert coupon.window.state(FUTURE, 1) == "OPEN"
    coupon.refresh_from_db()
    assert coupon.window.state(FUTURE, 1) == "PAUSED"


def test_an_opened_coupon_keeps_its_end_to_come_and_its_first_opening(
    make_coupon: MakeCoupon, control: Control
) -> None:
    coupon = make_coupon(**COUPONS["open until later"], paused=True)
    control(coupon, "open")
    assert window_of(coupon) == (PAST, FUTURE, False)


@pytest.mark.parametrize(
    ("before", "arguments", "words"),
    [
        ("closed", ("resume",), "open it instead"),
        ("closed in a pause", ("resume",), "open it instead"),
        ("closed", ("pause",), "closed"),
        ("open", ("restock",), "--quantity"),
        ("open", ("restock", "--quantity", "0"), "1 or more"),
        ("open", ("restock", "--quantity", "-5"), "1 or more"),
        ("open", ("restock", "--quantity", str(2**63)), "at most"),
        ("open", ("restock", "--quantity", str(2**63 - 1)), "at most"),
        ("open", ("pause", "--quantity", "5"), "only for restock"),
        ("open", ("pause", "--reason", "x" * 501), "500"),
        ("open", ("pause", "--reason", "\udcff"), "Unicode"),
        ("open", ("pause", "--id", "seven"), "UUID"),
        ("open", ("burn",), "choose from"),
    ],
)
def test_what_is_refused_changes_nothing_and_is_not_written_down(
    make_coupon: MakeCoupon, control: Control, before: str, arguments: tuple[str, ...], words: str
) -> None:
    coupon = make_coupon(**COUPONS[before])
    unchanged = Coupon.objects.values().get()
    with pytest.raises(CommandError, match=words) as caught:
        control(coupon, *arguments)
    assert len(str(caught.value).splitlines()) == 1
    assert Coupon.objects.values().get() == unchanged
    assert not CouponControl.objects.exists()


def test_a_coupon_that_does_not_exist_is_named(db: None) -> None:
    with pytest.raises(CommandError, match="There is no coupon 'NOBODYS'"):
        call_command("control_coupon", "NOBODYS", "open")


def test_a_closed_coupon_is_restocked_and_stays_closed(make_coupon: MakeCoupon, control: Control) -> None:
    printed = control(make_coupon(**COUPONS["closed"]), "restock", "--quantity", "5")
    assert (printed["state"], printed["totalQuantity"]) == ("CLOSED", 15)


# The same id again.


def test_a_restock_with_the_same_id_counts_once(make_coupon: MakeCoupon, control: Control) -> None:
    coupon = make_coupon(total_quantity=10)
    arguments = ("restock", "--quantity", "5", "--id", str(uuid4()))
    first = control(coupon, *arguments)
    assert control(coupon, *arguments) == first
    assert first["totalQuantity"] == 15
    assert CouponControl.objects.count() == 1
    assert control(coupon, "restock", "--quantity", "5")["totalQuantity"] == 20
    assert control(coupon, "restock", "--quantity", "5")["totalQuantity"] == 25


def test_the_same_id_again_changes_nothing_whatever_came_since(make_coupon: MakeCoupon, control: Control) -> None:
    coupon = make_coupon(paused=True)
    arguments = ("resume", "--id", str(uuid4()))
    control(coupon, *arguments)
    control(coupon, "close")
    closed = window_of(coupon)
    assert control(coupon, *arguments)["state"] == "CLOSED"
    assert window_of(coupon) == closed


@pytest.mark.parametrize("other", [("restock", "--quantity", "6"), ("pause",)])
def test_an_id_of_another_control_is_refused(make_coupon: MakeCoupon, control: Control, other: tuple[str, ...]) -> None:
    coupon, its_id = make_coupon(coupon_type="FIRST"), str(uuid4())
    control(coupon, "restock", "--quantity", "5", "--id", its_id)
    with pytest.raises(CommandError, match="was used to restock 5 coupon FIRST"):
        control(coupon, *other, "--id", its_id)
    with pytest.raises(CommandError, match="was used to restock 5 coupon FIRST"):
        control(make_coupon(), "restock", "--quantity", "5", "--id", its_id)
    assert window_of(coupon)[2] is False
    assert sorted(Coupon.objects.values_list("total_quantity", flat=True)) == [10, 15]


def restock_twice_at_once(coupon: Coupon, first_id: UUID, second_id: UUID) -> int:
    """Restock by 5 in two sessions, of which the second begins before the first has committed."""

    def restock(control_id: UUID) -> Coupon:
        return coupon_control(
            action=Action.RESTOCK, id_or_type=coupon.id, quantity=5, actor="olga", control_id=control_id
        )

    with OpenTransaction(lambda: restock(first_id)) as first:
        second = in_another_session(lambda: restock(second_id))
        wait_until_blocked(beside=second)
        first.commit()
        second.result(10)
    coupon.refresh_from_db()
    return coupon.total_quantity


@pytest.mark.django_db(transaction=True)
def test_the_same_restock_twice_at_the_same_moment_counts_once(make_coupon: MakeCoupon) -> None:
    its_id = uuid4()
    assert restock_twice_at_once(make_coupon(total_quantity=10), its_id, its_id) == 15


@pytest.mark.django_db(transaction=True)
def test_without_the_written_control_the_same_restock_would_count_twice(
    make_coupon: MakeCoupon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controls, "_is_new", lambda *_: True)
    its_id = uuid4()
    assert restock_twice_at_once(make_coupon(total_quantity=10), its_id, its_id) == 20


@pytest.mark.django_db(transaction=True)
def test_two_restocks_at_the_same_moment_both_count(make_coupon: MakeCoupon) -> None:
    assert restock_twice_at_once(make_coupon(total_quantity=10), uuid4(), uuid4()) == 20


@pytest.mark.django_db(transaction=True)
def test_without_the_lock_one_of_two_restocks_would_be_lost(
    make_coupon: MakeCoupon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controls, "_locked", lambda coupon_id: Coupon.objects.get(id=coupon_id))
    assert restock_twice_at_once(make_coupon(total_quantity=10), uuid4(), uuid4()) == 15


@pytest.mark.django_db(transaction=True)
def test_one_id_for_two_coupons_at_the_same_moment_is_refused_for_one(make_coupon: MakeCoupon) -> None:
    one, other, its_id = make_coupon(), make_coupon(), uuid4()
    with OpenTransaction(
        lambda: coupon_control(action=Action.CLOSE, id_or_type=one.id, actor="olga", control_id=its_id)
    ) as first:
        second = in_another_session(
            lambda: coupon_control(action=Action.CLOSE, id_or_type=other.id, actor="olga", control_id=its_id)
        )
        wait_until_blocked(beside=second)
        first.commit()
        with pytest.raises(InvalidRequest, match="use a new id"):
            second.result(10)
    assert [window_of(coupon)[1] is None for coupon in (one, other)] == [False, True]


@pytest.mark.parametrize(
    "statement", ["UPDATE coupons_couponcontrol SET reason = ''", "DELETE FROM coupons_couponcontrol"]
)
def test_what_is_written_down_stays(make_coupon: MakeCoupon, statement: str) -> None:
    coupon_control(action=Action.PAUSE, id_or_type=make_coupon().id, actor="olga", reason="an error in the terms")
    with pytest.raises(DatabaseError, match="append-only"), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement)


# At the accept API, and behind it.


@pytest.fixture
def ask(client: Client, token: Callable[..., dict[str, str]]) -> Callable[[Coupon, int], Any]:
    def request(coupon: Coupon, user_id: int) -> Any:
        path = f"/api/v1/coupons/{coupon.id}/issue-async"
        return client.post(path, content_type="application/json", headers=token(user_id))

    return request


@pytest.mark.django_db(transaction=True)
def test_a_control_is_in_effect_at_the_accept_api_within_a_second(
    make_coupon: MakeCoupon, ask: Callable[[Coupon, int], Any]
) -> None:
    coupon = make_coupon()

    def answers(status: int) -> bool:
        return bool(ask(coupon, 1).status_code == status)

    steps = ((Action.PAUSE, 409), (Action.RESUME, 202), (Action.CLOSE, 409), (Action.OPEN, 202))
    for action, status in steps:
        assert not answers(status)
        coupon_control(action=action, id_or_type=coupon.coupon_type, actor="olga")
        wait_until(partial(answers, status), 1.0, f"{action}: no {status}")


@pytest.mark.django_db(transaction=True)
def test_after_a_restock_the_answer_stands_and_the_user_asks_again(
    make_coupon: MakeCoupon, ask: Callable[[Coupon, int], Any], client: Client, token: Callable[..., dict[str, str]]
) -> None:
    coupon = make_coupon(total_quantity=1)

    def deliver(*request_ids: str) -> None:
        bodies = [bytes(OutboxMessage.objects.get(event_id=one).payload or b"") for one in request_ids]
        BatchHandler(ISSUE).handle([message(body) for body in bodies], StopFlag())

    def status(request_id: str) -> tuple[str, str | None]:
        answer = client.get(f"/api/v1/issue-requests/{request_id}", headers=token(2)).json()
        return answer["status"], answer["reason"]

    winner, loser = ask(coupon, 1).json()["requestId"], ask(coupon, 2).json()["requestId"]
    deliver(winner, loser)
    assert status(loser) == ("FAILED", "SOLD_OUT")

    coupon_control(action=Action.RESTOCK, id_or_type=coupon.id, quantity=1, actor="olga")
    deliver(winner, loser)
    assert status(loser) == ("FAILED", "SOLD_OUT")
    assert IssueRequest.objects.get(request_id=loser).reason == "SOLD_OUT"

    again = ask(coupon, 2).json()["requestId"]
    assert again != loser
    deliver(loser, again)
    assert status(again) == ("SUCCESS", None)
    assert status(loser) == ("FAILED", "SOLD_OUT")
    coupon.refresh_from_db()
    assert (coupon.issued, coupon.total_quantity) == (2, 2)


# As a process.


@pytest.mark.django_db(transaction=True)
def test_a_control_whose_connection_is_lost_is_carried_out_once(make_coupon: MakeCoupon) -> None:
    coupon = make_coupon(total_quantity=10)
    with OpenTransaction(lambda: Coupon.objects.select_for_update().get()) as batch:
        process = subprocess.Popen(
            [sys.executable, "manage.py", "control_coupon", coupon.coupon_type, "restock", "--quantity", "5"],
            cwd=django_settings.BASE_DIR,
            env={**os.environ, **environment()},
            stdout=subprocess.PIPE,
            text=True,
        )
        for backend in when_waiting_for_a_lock("control_coupon"):
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_terminate_backend(%s)", [backend])
        when_waiting_for_a_lock("control_coupon")
        batch.commit()
    printed, _ = process.communicate(timeout=30)
    assert (process.returncode, json.loads(printed)["totalQuantity"]) == (0, 15)
    assert CouponControl.objects.count() == 1


def test_an_unreachable_database_is_one_line() -> None:
    env = environment(DATABASE_URL="postgres://unused@127.0.0.1:9/none")
    ended = run_command("control_coupon", "SUMMER", "pause", "--wait", "1", env=env)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert "PostgreSQL does not answer" in ended.stderr.splitlines()[-1]
