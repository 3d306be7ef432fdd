"""The stock taken under the row lock of the coupon: once, and given back once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import partial
from uuid import UUID

import pytest
from django.db import IntegrityError, connection, transaction
from django.test.utils import CaptureQueriesContext
from uuid_utils.compat import uuid7

from common.processes.lifecycle import StopFlag
from coupons.admission import ADMISSIONS, AdmissionRequest, reserve
from coupons.models import Coupon, Reservation
from kafka_bridge.models import OutboxMessage
from kafka_bridge.outbox.pruning import prune
from tests.support.messages import message, request_body
from tests.support.threads import OpenTransaction, in_another_session, wait_until_blocked

from .conftest import accept, answer, ask, assert_invariants, issue, messages_on_their_way, stock

pytestmark = pytest.mark.django_db(transaction=True)

MakeReserve = Callable[..., Coupon]


@pytest.fixture
def make_reserve(make_coupon: Callable[..., Coupon]) -> MakeReserve:
    return partial(make_coupon, admission="reserve")


@pytest.fixture
def without_the_condition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        reserve, "_RESERVE_UNITS", reserve._RESERVE_UNITS.replace("total_quantity - issued - reserved >=", "0 <=")
    )


def test_a_reserved_piece_is_counted_until_the_coupon_takes_its_place(make_reserve: MakeReserve) -> None:
    coupon = make_reserve()
    accept(coupon, 1)
    assert stock(coupon) == (1, 0)
    assert coupon.remaining == 9
    issue()
    assert stock(coupon) == (0, 1)


def ask_beside(coupon: Coupon) -> str:
    """What user 2 is told who asks while user 1's request is being committed."""
    with OpenTransaction(lambda: accept(coupon, 1)) as other:
        mine = in_another_session(lambda: ask(coupon, 2))
        wait_until_blocked(beside=mine)
        other.commit()
        return str(mine.result(10))


def test_two_at_once_for_the_last_piece_share_it_out(make_reserve: MakeReserve) -> None:
    assert ask_beside(make_reserve(total_quantity=1)) == "sold_out"


@pytest.mark.usefixtures("without_the_condition")
def test_without_the_condition_the_last_piece_would_be_promised_twice(make_reserve: MakeReserve) -> None:
    with pytest.raises(IntegrityError, match="coupon_stock"):
        ask_beside(make_reserve(total_quantity=1))


def test_a_group_that_finds_fewer_pieces_than_it_looked_for_takes_what_is_left(make_reserve: MakeReserve) -> None:
    coupon = make_reserve(total_quantity=3)
    users = [(uuid7(), user_id) for user_id in (2, 3, 4, 4)]
    with OpenTransaction(lambda: accept(coupon, 1)) as other:
        mine = in_another_session(partial(record, coupon, users))
        wait_until_blocked()
        other.commit()
        requests = mine.result(10)
    assert [one.sequence for one in requests] == [2, 3, None, None]
    assert [one.refusal and one.refusal.code for one in requests] == [None, None, "sold_out", "sold_out"]
    assert stock(coupon) == (3, 0)
    assert set(Reservation.objects.values_list("user_id", flat=True)) == {1, 2, 3}


def record(coupon: Coupon, users: Iterable[tuple[UUID, int]]) -> list[AdmissionRequest]:
    """A group of requests (id, user), with what becomes of them."""
    candidates = [AdmissionRequest(request_id, user_id, coupon.id, 3) for request_id, user_id in users]
    with transaction.atomic():
        ADMISSIONS["reserve"].admit(candidates)
        ADMISSIONS["reserve"].confirm(candidates)
    return candidates


def test_the_lock_is_held_for_no_more_than_the_insert(make_reserve: MakeReserve) -> None:
    coupon = make_reserve()
    with CaptureQueriesContext(connection) as captured:
        accept(coupon, 1)
    statements = [query["sql"] for query in captured]
    (locked,) = [index for index, sql in enumerate(statements) if sql.split()[:2] == ["UPDATE", "coupons_coupon"]]
    insert, commit = statements[locked + 1 :]
    assert "INSERT INTO kafka_bridge_outboxmessage" in insert
    assert commit == "COMMIT"


def test_a_request_that_is_rolled_back_leaves_its_piece_to_the_next(make_reserve: MakeReserve) -> None:
    coupon = make_reserve(total_quantity=1)
    with OpenTransaction(lambda: accept(coupon, 1)) as other:
        mine = in_another_session(lambda: ask(coupon, 2))
        wait_until_blocked()
        other.rollback()
        assert mine.result(10) == "accepted"
    assert stock(coupon) == (1, 0)


def test_who_is_refused_waits_for_nobody(make_reserve: MakeReserve) -> None:
    coupon = make_reserve(total_quantity=1)
    accept(coupon, 1)
    with OpenTransaction(lambda: Coupon.objects.select_for_update(no_key=True).get(pk=coupon.pk)):
        assert in_another_session(lambda: ask(coupon, 2)).result(5) == "sold_out"


def test_a_duplicate_gives_its_piece_back_once(make_reserve: MakeReserve) -> None:
    coupon = make_reserve(total_quantity=1)
    accepted = accept(coupon, 1)
    on_its_way = messages_on_their_way()
    Coupon.objects.update(total_quantity=2)
    issue([message(request_body(coupon, 1))])  # by somebody else, who was faster
    assert stock(coupon) == (1, 1)

    issue(on_its_way)
    issue(on_its_way)

    assert answer(accepted.request_id) == ("FAILED", "ALREADY_ISSUED")
    assert stock(coupon) == (0, 1)
    assert ask(coupon, 2) == "accepted"
    issue()
    assert_invariants()


def test_the_piece_of_a_duplicate_is_there_for_the_next_of_the_batch(make_reserve: MakeReserve) -> None:
    coupon = make_reserve(total_quantity=2)
    accept(coupon, 1)
    strangers = [message(request_body(coupon, user_id)) for user_id in (1, 2)]
    issue([strangers[0], *messages_on_their_way(), strangers[1]])
    assert stock(coupon) == (0, 2)
    assert_invariants()


def test_nobody_else_gets_a_reserved_piece(make_reserve: MakeReserve) -> None:
    coupon = make_reserve(total_quantity=1)
    accepted = accept(coupon, 1)
    issue([message(request_body(coupon, 2, admission="reserve")), *messages_on_their_way()])
    assert answer(accepted.request_id) == ("SUCCESS", None)
    assert stock(coupon) == (0, 1)


def test_a_group_of_requests_takes_its_pieces_at_once_in_order(make_reserve: MakeReserve) -> None:
    coupon = make_reserve(total_quantity=3)
    one_user = uuid7()
    users = [(uuid7(), 1), (one_user, 2), (uuid7(), 2), (one_user, 2), (uuid7(), 3), (uuid7(), 4)]
    requests = record(coupon, users)
    assert [one.sequence for one in requests] == [1, 2, None, None, 3, None]
    assert [one.refusal and one.refusal.code for one in requests] == [
        None, None, "already_issued", None, None, "sold_out",
    ]  # fmt: skip
    assert stock(coupon) == (3, 0)


def test_places_in_line_are_not_given_out_twice(make_reserve: MakeReserve) -> None:
    coupon = make_reserve()
    first = accept(coupon, 1)
    issue([message(b"{", headers=(("ce_id", str(first.request_id).encode()),))])
    assert accept(coupon, 2).sequence == 2


def test_pruning_leaves_what_is_reserved(make_reserve: MakeReserve) -> None:
    coupon = make_reserve()
    accept(coupon, 1)
    OutboxMessage.objects.update(published_at="2020-01-01T00:00:00Z", created_at="2020-01-01T00:00:00Z")
    prune(timedelta(hours=1), StopFlag())
    assert Reservation.objects.count() == OutboxMessage.objects.count() == 1
    issue()
    assert stock(coupon) == (0, 1)
