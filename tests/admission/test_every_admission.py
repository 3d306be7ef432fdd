"""What holds for gate and reserve alike: the answers at the accept API, and what becomes of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from django.db import IntegrityError, connection
from django.test import Client
from django_redis import get_redis_connection

from common.api.errors import IdempotencyKeyReused
from coupons.coupon_cache import coupon_cache
from coupons.issuance import accept_group
from coupons.issuance.accept import request_accept
from coupons.issuance.issue import issue_many
from coupons.messages import read_issue_task
from coupons.models import Coupon, IssueRequest, Reservation, UserCoupon
from kafka_bridge.models import OutboxMessage
from tests.support.messages import message, request_body, request_id
from tests.support.threads import OpenTransaction

from .conftest import accept, answer, ask, assert_invariants, at_once, crowd, issue, messages_on_their_way, stock

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.parametrize("admission", ["gate", "reserve"]),
]

MakeCoupon = Callable[..., Coupon]


def test_who_comes_first_is_let_in_and_the_others_are_told_at_once(admission: str, make_coupon: MakeCoupon) -> None:
    coupon = make_coupon(admission=admission, total_quantity=2)
    assert [ask(coupon, user_id) for user_id in (1, 2, 3)] == ["accepted", "accepted", "sold_out"]
    assert OutboxMessage.objects.count() == 2
    issue()
    assert set(UserCoupon.objects.values_list("user_id", flat=True)) == {1, 2}
    assert ask(coupon, 4) == "sold_out"
    assert_invariants()


def test_a_user_is_let_in_once(admission: str, make_coupon: MakeCoupon) -> None:
    coupon = make_coupon(admission=admission)
    assert [ask(coupon, 1), ask(coupon, 1)] == ["accepted", "already_issued"]
    issue()
    assert ask(coupon, 1) == "already_issued"
    assert UserCoupon.objects.count() == 1
    assert_invariants()


def test_a_duplicate_is_told_so_even_when_the_stock_is_gone(admission: str, make_coupon: MakeCoupon) -> None:
    coupon = make_coupon(admission=admission, total_quantity=1)
    assert [ask(coupon, 1), ask(coupon, 1), ask(coupon, 2)] == ["accepted", "already_issued", "sold_out"]


def test_the_place_in_line_is_told_and_kept(admission: str, make_coupon: MakeCoupon) -> None:
    coupon = make_coupon(admission=admission)
    first = accept(coupon, 1, "k")
    assert [first.sequence, accept(coupon, 2).sequence] == [1, 2]
    assert accept(coupon, 1, "k") == first


def test_the_same_key_is_the_same_request_even_when_the_stock_is_gone(admission: str, make_coupon: MakeCoupon) -> None:
    coupon = make_coupon(admission=admission, total_quantity=1)
    first = accept(coupon, 1, "k")
    assert ask(coupon, 2) == "sold_out"
    assert accept(coupon, 1, "k") == first
    issue()
    assert accept(coupon, 1, "k") == first
    assert OutboxMessage.objects.filter(event_id=first.request_id).count() == 1
    assert_invariants()


def test_the_same_key_is_the_same_request_whatever_became_of_it(admission: str, make_coupon: MakeCoupon) -> None:
    coupon = make_coupon(admission=admission, total_quantity=2)
    first, failed = accept(coupon, 1, "k"), accept(coupon, 2, "k")
    issue([message(b"{", headers=(("ce_id", str(failed.request_id).encode()),))])
    issue()
    assert [answer(one.request_id) for one in (first, failed)] == [("SUCCESS", None), ("FAILED", "ERROR")]

    def flush() -> None:
        get_redis_connection("default").flushdb()

    changes: list[Callable[[], None]] = [issue, flush, partial(restock, coupon, 3)]
    for change in changes:
        change()
        assert [accept(coupon, 1, "k"), accept(coupon, 2, "k")] == [first, failed]
    assert [ask(coupon, user_id) for user_id in (2, 3, 4)] == ["accepted", "accepted", "sold_out"]
    assert accept(coupon, 2, "k") == failed
    issue()
    assert_invariants()


@pytest.mark.parametrize("state", ["open", "sold out", "closed"])
def test_a_key_belongs_to_its_coupon_in_whatever_state_the_other_one_is(
    admission: str, state: str, make_coupon: MakeCoupon
) -> None:
    accept(make_coupon(admission=admission), 1, "k")
    other = make_coupon(admission=admission, total_quantity=1)
    if state == "sold out":
        accept(other, 2)
    if state == "closed":
        Coupon.objects.filter(id=other.id).update(closes_at="2020-01-02T00:00:00Z")
    for _ in ("under way", "decided"):
        with pytest.raises(IdempotencyKeyReused):
            accept(other, 1, "k")
        issue()
    if state == "open":
        assert ask(other, 3) == "accepted"
    assert_invariants()


def test_under_one_key_of_somebody_who_asks_for_others_there_is_one_request(
    admission: str, make_coupon: MakeCoupon
) -> None:
    coupon = make_coupon(admission=admission, total_quantity=2)

    def ask_for(user_id: int) -> str:
        try:
            return str(request_accept(id_or_type=coupon.id, user_id=user_id, caller_id=9, idempotency_key="k").user_id)
        except IdempotencyKeyReused as error:
            return error.code
        finally:
            connection.close()

    told = at_once([partial(ask_for, user_id) for user_id in range(1, 21)])
    assert sorted(told)[1:] == ["idempotency_key_reused"] * 19
    assert [ask(coupon, 30), ask(coupon, 31)] == ["accepted", "sold_out"]
    issue()
    assert_invariants()


@pytest.mark.usefixtures("every_request_alone")
def test_many_under_one_key_at_once_are_one_request(admission: str, make_coupon: MakeCoupon) -> None:
    coupon = make_coupon(admission=admission, total_quantity=2)
    answers = at_once([partial(accept, coupon, 1, "k")] * 40)
    assert len({one.request_id for one in answers}) == 1
    assert [ask(coupon, 2), ask(coupon, 3)] == ["accepted", "sold_out"]
    issue()
    assert_invariants()


def test_a_key_that_belongs_to_another_coupon_takes_nothing(admission: str, make_coupon: MakeCoupon) -> None:
    accept(make_coupon(admission=admission), 1, "k")
    other = make_coupon(admission=admission, total_quantity=1)
    with pytest.raises(IdempotencyKeyReused):
        accept(other, 1, "k")
    assert ask(other, 2) == "accepted"


def test_a_refusal_is_not_kept(admission: str, make_coupon: MakeCoupon) -> None:
    coupon = make_coupon(admission=admission, total_quantity=1)
    accept(coupon, 1)
    assert ask(coupon, 2, "k") == "sold_out"
    restock(coupon, 2)
    assert ask(coupon, 2, "k") == "accepted"


def restock(coupon: Coupon, total: int) -> None:
    Coupon.objects.filter(id=coupon.id).update(total_quantity=total)
    coupon_cache.clear()  # as it does by itself within a second


def test_a_restock_lets_more_in_and_a_smaller_stock_fewer(admission: str, make_coupon: MakeCoupon) -> None:
    coupon = make_coupon(admission=admission, total_quantity=1)
    assert [ask(coupon, 1), ask(coupon, 2)] == ["accepted", "sold_out"]
    restock(coupon, 3)
    assert ask(coupon, 2) == "accepted"
    restock(coupon, 2)
    assert ask(coupon, 3) == "sold_out"
    issue()
    assert stock(coupon) == (0, 2)


@pytest.mark.parametrize("grouped", [True, False], ids=["sharing calls", "each alone"])
def test_a_crowd_for_fifty_pieces_gets_exactly_fifty(
    admission: str, grouped: bool, make_coupon: MakeCoupon, request: pytest.FixtureRequest
) -> None:
    if not grouped:
        request.getfixturevalue("every_request_alone")
    coupon = make_coupon(admission=admission, total_quantity=50)
    told = crowd(coupon, [*range(1, 201)] * 2)
    assert told == {"accepted": 50, "already_issued": 50, "sold_out": 300}
    issue()
    assert set(IssueRequest.objects.values_list("status", flat=True)) == {"SUCCESS"}
    assert stock(coupon) == (0, 50)
    assert not Reservation.objects.exists()
    assert_invariants()


def test_a_crowd_while_the_issuer_works_gets_exactly_fifty(admission: str, make_coupon: MakeCoupon) -> None:
    coupon = make_coupon(admission=admission, total_quantity=50)

    def keep_issuing() -> None:
        try:
            while not done:
                issue()
        finally:
            connection.close()

    done: list[bool] = []
    with ThreadPoolExecutor(1) as pool:
        issuer = pool.submit(keep_issuing)
        told = crowd(coupon, range(1, 301))
        done.append(True)
        issuer.result(60)
    issue()
    assert told == {"accepted": 50, "sold_out": 250}
    assert stock(coupon) == (0, 50)
    assert IssueRequest.objects.filter(status="SUCCESS").count() == 50
    assert_invariants()


def test_a_dead_letter_gives_its_piece_back_once(admission: str, make_coupon: MakeCoupon) -> None:
    coupon = make_coupon(admission=admission, total_quantity=2)
    first = accept(coupon, 1)
    on_its_way = messages_on_their_way()
    broken = message(b"{", headers=(("ce_id", str(first.request_id).encode()),))
    assert [ask(coupon, 2), ask(coupon, 3)] == ["accepted", "sold_out"]

    issue([broken])
    issue([broken])
    issue(on_its_way)

    assert answer(first.request_id) == ("FAILED", "ERROR")
    assert [ask(coupon, user_id) for user_id in (1, 3)] == ["accepted", "sold_out"]
    issue()
    assert stock(coupon) == (0, 2)
    assert_invariants()


def test_an_issuer_that_is_killed_before_its_commit_moves_nothing(admission: str, make_coupon: MakeCoupon) -> None:
    coupon = make_coupon(admission=admission, total_quantity=1)
    accept(coupon, 1)
    tasks = [read_issue_task(one) for one in messages_on_their_way()]
    with OpenTransaction(lambda: issue_many(tasks)):
        pass  # rolls back
    assert stock(coupon)[1] == 0
    assert ask(coupon, 2) == "sold_out"
    issue()
    assert stock(coupon) == (0, 1)
    assert_invariants()


def test_an_accepted_request_that_comes_as_something_else_is_still_its_own(
    admission: str, make_coupon: MakeCoupon
) -> None:
    """Somebody puts a copy of a request on the topic, with another admission."""
    coupon = make_coupon(admission=admission, total_quantity=1)
    accepted = accept(coupon, 1)
    [received] = messages_on_their_way()
    body = json.loads(received.value or b"")
    issue([message(body | {"admission": other}) for other in ("queue", "gate", "reserve")])
    assert answer(accepted.request_id) == ("SUCCESS", None)
    assert stock(coupon) == (0, 1)
    assert_invariants()


def test_what_a_stranger_says_was_taken_was_not(admission: str, make_coupon: MakeCoupon) -> None:
    coupon = make_coupon(admission=admission, total_quantity=1)
    accept(coupon, 1)
    strange = message(request_body(coupon, 2, admission=admission, sequence=1))
    issue([*messages_on_their_way(), strange])
    assert answer(request_id(strange)) == ("FAILED", "SOLD_OUT")
    assert stock(coupon) == (0, 1)


@pytest.mark.parametrize("then", ["queue", "gate", "reserve"])
def test_each_request_ends_by_the_admission_that_let_it_in(admission: str, then: str, make_coupon: MakeCoupon) -> None:
    """The admission is changed while requests are under way, there and back."""
    coupon = make_coupon(admission=admission, total_quantity=4)
    for way, users in [(admission, (1, 2)), (then, (3,)), (admission, (4,))]:
        Coupon.objects.filter(id=coupon.id).update(admission=way)
        coupon_cache.clear()
        assert [ask(coupon, user_id) for user_id in users] == ["accepted"] * len(users)
    issue()
    assert stock(coupon) == (0, 4)
    assert ask(coupon, 5) == "sold_out"
    assert_invariants()


def test_an_insert_that_is_refused_gives_back_what_was_taken(
    admission: str, make_coupon: MakeCoupon, monkeypatch: pytest.MonkeyPatch
) -> None:
    coupon = make_coupon(admission=admission, total_quantity=1)

    def refuse(rows: object) -> list[bool]:
        raise IntegrityError("the statement is refused")

    with monkeypatch.context() as patch:
        patch.setattr(accept_group, "insert_new_rows", refuse)
        with pytest.raises(IntegrityError):
            accept(coupon, 1)
    assert ask(coupon, 2) == "accepted"
    issue()
    assert_invariants()


def test_the_accept_api_tells_refusals_as_problems(
    admission: str, make_coupon: MakeCoupon, client: Client, token: Callable[..., dict[str, str]]
) -> None:
    coupon = make_coupon(admission=admission, total_quantity=1)

    def post(user_id: int) -> Any:
        return client.post(
            f"/api/v1/coupons/{coupon.id}/issue-async", content_type="application/json", headers=token(user_id)
        )

    accepted = post(1)
    assert (accepted.status_code, accepted.json()["sequence"]) == (202, 1)
    for user_id, code in [(1, "already_issued"), (2, "sold_out")]:
        refused = post(user_id)
        assert (refused.status_code, refused.json()["code"]) == (409, code)
