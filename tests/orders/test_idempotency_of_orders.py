"""A client that does not know whether it was heard asks again under the same key, and nothing happens twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.core.management import call_command
from django.db import IntegrityError, connection
from django.db.models import F
from django.test import Client
from django.test.utils import CaptureQueriesContext
from pytest_django import Settings

from kafka_bridge.models import OutboxMessage
from orders.models import IdempotencyKey, Order, Product
from orders.schemas import PaidOrder
from orders.services import idempotency
from orders.services.idempotency import store_response
from orders.services.placing import OrderItemInput, order_create
from tests.edge.conftest import assert_problem
from tests.support.gateway import Memory, approve, decline, move_and_time_out
from tests.support.threads import OpenTransaction, in_another_session, wait_until_blocked

from .conftest import ALICE, BOB, ORDERS, Call, GiveCoupon, Pause

# The provider is never asked inside a transaction, so there is none around the tests either.
pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("provider")]

Ask = Callable[..., Any]
Place = Callable[..., int]


@pytest.fixture
def ask(call: Call, socks: Product) -> Ask:
    """``ask(key, quantity=1, user=ALICE, ...)``: places an order for socks under a key."""

    def place(key: str, *, quantity: int = 1, user: int = ALICE, **body: Any) -> Any:
        items = [{"productId": socks.id, "quantity": quantity}]
        return call("POST", ORDERS, {"items": items} | body, user=user, Idempotency_Key=key)

    return place


# Placing


def test_the_same_key_is_the_same_order(ask: Ask, give_coupon: GiveCoupon) -> None:
    mine = give_coupon()
    first = ask("k", quantity=2, userCouponId=mine.id)
    again = ask("k", quantity=2, userCouponId=mine.id)
    assert (first.status_code, again.status_code) == (201, 201)
    assert (first.content, first["Location"]) == (again.content, again["Location"])
    assert Order.objects.count() == 1


def test_a_first_answer_that_cannot_be_read_is_our_fault_and_not_the_clients(
    ask: Ask, socks: Product, token: Callable[..., dict[str, str]], caplog: pytest.LogCaptureFixture
) -> None:
    ask("k")
    ask("l")
    IdempotencyKey.objects.filter(key="k").update(response=b"{}")
    client, headers = Client(raise_request_exception=False), token(ALICE) | {"Idempotency-Key": "k"}
    body = {"items": [{"productId": socks.id, "quantity": 1}]}
    assert_problem(client.post(ORDERS, body, content_type="application/json", headers=headers), 500, "error")
    assert "request failed" in caplog.text
    assert ask("l").status_code == 201


def test_without_a_key_and_under_another_each_is_an_order_of_its_own(ask: Ask, place: Place) -> None:
    ids = {place(), place(), *(ask(key).json()["orderId"] for key in ("k", "l"))}
    assert len(ids) == Order.objects.count() == 4


def test_the_same_body_may_be_spelled_differently(call: Call, socks: Product) -> None:
    bodies = [
        f'{{"items":[{{"productId":{socks.id},"quantity":1}}]}}'.encode(),
        f'{{ "userCouponId": null, "items": [ {{"quantity": 1, "productId": {socks.id}}} ] }}'.encode(),
    ]
    first, again = (call("POST", ORDERS, body, Idempotency_Key="k") for body in bodies)
    assert (first.status_code, first.content) == (201, again.content)


def test_the_first_answer_is_given_even_when_the_order_and_the_price_have_changed(
    ask: Ask, call: Call, socks: Product
) -> None:
    first = ask("k")
    call("POST", f"{first['Location']}/cancel")
    Product.objects.filter(id=socks.id).update(price=1)
    again = ask("k")
    assert (again.status_code, again.content) == (201, first.content)
    assert call("GET", first["Location"]).json()["status"] == "CANCELLED"


def test_another_body_under_the_key_is_refused(ask: Ask, call: Call, socks: Product, give_coupon: GiveCoupon) -> None:
    first = ask("k")
    mine = give_coupon()
    items = [{"productId": socks.id, "quantity": 1}]
    for other in (
        ask("k", quantity=2),
        ask("k", userCouponId=mine.id),
        call("POST", ORDERS, {"items": items * 2}, Idempotency_Key="k"),
    ):
        assert_problem(other, 422, "idempotency_key_reused")
    assert Order.objects.get().id == first.json()["orderId"]
    mine.refresh_from_db()
    assert mine.status == "ISSUED"
    assert ask("k").content == first.content


def test_a_key_belongs_to_its_user(ask: Ask, call: Call) -> None:
    alices, bobs = ask("k"), ask("k", user=BOB, quantity=2)
    assert (alices.status_code, bobs.status_code) == (201, 201)
    assert alices.json()["orderId"] != bobs.json()["orderId"]
    assert call("GET", bobs["Location"], user=ALICE).status_code == 404


def test_a_refusal_is_not_kept(ask: Ask, call: Call, give_coupon: GiveCoupon) -> None:
    mine = give_coupon(status="HELD")
    assert_problem(ask("k", userCouponId=mine.id), 409, "coupon_not_usable")
    mine.status = "ISSUED"
    mine.save()
    assert ask("k", userCouponId=mine.id).status_code == 201
    items = [{"productId": 987_654, "quantity": 1}]
    assert_problem(call("POST", ORDERS, {"items": items}, Idempotency_Key="l"), 404, "not_found")
    assert ask("l").status_code == 201


def test_a_key_under_way_is_told_so_at_once_and_then_gets_the_answer(ask: Ask, socks: Product) -> None:
    answers: list[Any] = []
    wishes = [OrderItemInput(socks.id, 1)]
    with OpenTransaction(
        lambda: answers.append(order_create(user_id=ALICE, items=wishes, idempotency_key="k"))
    ) as first:
        refused = ask("k")
        assert_problem(refused, 409, "in_progress")
        assert int(refused["Retry-After"]) >= 1
        assert ask("k", user=BOB).status_code == ask("l").status_code == 201
        first.commit()
    assert ask("k").json()["orderId"] == answers[0].order_id
    assert Order.objects.count() == 3


def test_without_its_lock_a_key_under_way_would_keep_the_client_waiting(
    ask: Ask, socks: Product, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency, "_TRY_LOCK", "SELECT %s <> ''")
    wishes = [OrderItemInput(socks.id, 1)]
    with OpenTransaction(lambda: order_create(user_id=ALICE, items=wishes, idempotency_key="k")) as first:
        second = in_another_session(lambda: ask("k"))
        wait_until_blocked(beside=second)
        assert not second.done()
        first.commit()
        # And the client would be told of an error of ours.
        with pytest.raises(IntegrityError, match="one_call_per_idempotency_key"):
            second.result(10)
    assert Order.objects.count() == 1


def test_a_key_whose_call_died_may_be_used_again(ask: Ask, socks: Product) -> None:
    wishes = [OrderItemInput(socks.id, 1)]
    with OpenTransaction(lambda: order_create(user_id=ALICE, items=wishes, idempotency_key="k")) as first:
        first.rollback()
    assert ask("k", quantity=2).status_code == 201
    assert Order.objects.count() == 1


# Paying


def test_the_same_key_pays_once(call: Call, place: Place, provider: Memory) -> None:
    order_id = place()
    first, again = (call("POST", f"{ORDERS}/{order_id}/pay", Idempotency_Key="k") for _ in range(2))
    assert (first.status_code, first.content) == (200, again.content)
    assert (len(provider.books.calls), OutboxMessage.objects.count()) == (1, 1)


def test_a_payment_is_told_again_even_when_the_order_was_cancelled(call: Call, place: Place) -> None:
    order_id = place()
    first = call("POST", f"{ORDERS}/{order_id}/pay", Idempotency_Key="k")
    call("POST", f"{ORDERS}/{order_id}/cancel")
    again = call("POST", f"{ORDERS}/{order_id}/pay", Idempotency_Key="k")
    assert (again.status_code, again.content) == (200, first.content)
    assert_problem(call("POST", f"{ORDERS}/{order_id}/pay", Idempotency_Key="l"), 409, "invalid_state")


def test_a_key_that_finds_the_order_paid_keeps_that_answer(call: Call, place: Place) -> None:
    order_id = place()
    first = call("POST", f"{ORDERS}/{order_id}/pay")
    assert call("POST", f"{ORDERS}/{order_id}/pay", Idempotency_Key="k").content == first.content
    call("POST", f"{ORDERS}/{order_id}/cancel")
    assert call("POST", f"{ORDERS}/{order_id}/pay", Idempotency_Key="k").content == first.content


def test_the_key_of_a_payment_is_for_one_order(call: Call, place: Place, provider: Memory) -> None:
    one, other = place(), place()
    call("POST", f"{ORDERS}/{one}/pay", Idempotency_Key="k")
    assert_problem(call("POST", f"{ORDERS}/{other}/pay", Idempotency_Key="k"), 422, "idempotency_key_reused")
    assert [call.order_id for call in provider.books.calls] == [one]


def test_placing_and_paying_may_share_a_key(ask: Ask, call: Call) -> None:
    placed = ask("k")
    paid = call("POST", f"{placed['Location']}/pay", Idempotency_Key="k")
    assert (paid.status_code, paid.json()["status"]) == (200, "PAID")


def test_the_key_of_a_payment_under_way_is_told_so_and_then_gets_the_answer(
    call: Call, place: Place, provider: Memory, pause: Pause
) -> None:
    order_id = place()
    paying = in_another_session(lambda: call("POST", f"{ORDERS}/{order_id}/pay", Idempotency_Key="k"))
    assert pause.begun.wait(10)
    refused = call("POST", f"{ORDERS}/{order_id}/pay", Idempotency_Key="k")
    assert_problem(refused, 409, "in_progress")
    assert int(refused["Retry-After"]) >= 1
    pause.end()
    first = paying.result(10)
    again = call("POST", f"{ORDERS}/{order_id}/pay", Idempotency_Key="k")
    assert (first.status_code, first.content) == (200, again.content)
    assert (len(provider.books.calls), OutboxMessage.objects.count()) == (1, 1)


def test_a_declined_payment_gives_its_key_back(call: Call, place: Place, provider: Memory) -> None:
    one, other = place(), place()
    provider.answer = decline
    assert_problem(call("POST", f"{ORDERS}/{one}/pay", Idempotency_Key="k"), 409, "invalid_state")
    provider.answer = approve
    assert call("POST", f"{ORDERS}/{other}/pay", Idempotency_Key="k").status_code == 200


def test_a_payment_in_doubt_is_settled_under_its_key(call: Call, place: Place, provider: Memory) -> None:
    order_id = place()
    provider.answer = move_and_time_out
    assert_problem(call("POST", f"{ORDERS}/{order_id}/pay", Idempotency_Key="k"), 503, "unavailable")
    provider.answer = approve
    call_command("expire_orders")
    again = call("POST", f"{ORDERS}/{order_id}/pay", Idempotency_Key="k")
    assert (again.status_code, again.json()["status"]) == (200, "PAID")
    assert (provider.books.kept(order_id), OutboxMessage.objects.count()) == (12_900, 1)


# Keys


@pytest.mark.parametrize("key", ["", "x" * 256, "caf\u00e9", "a\tb"], ids=["empty", "too long", "not ASCII", "a tab"])
def test_what_cannot_be_a_key_is_refused(ask: Ask, call: Call, place: Place, key: str) -> None:
    order_id = place()
    for refused in (ask(key), call("POST", f"{ORDERS}/{order_id}/pay", Idempotency_Key=key)):
        assert assert_problem(refused, 400, "invalid")["errors"][0]["field"] == "Idempotency-Key"
    assert (Order.objects.get().status, IdempotencyKey.objects.count()) == ("PENDING", 0)


def test_a_key_is_kept_for_a_day_and_forgotten_some_time_later(ask: Ask, settings: Settings) -> None:
    first = ask("k").json()
    hour = timedelta(hours=settings.IDEMPOTENCY_KEY_RETENTION_HOURS) / 48
    IdempotencyKey.objects.update(created_at=F("created_at") - 25 * hour)
    call_command("housekeep")
    assert ask("k").json() == first
    IdempotencyKey.objects.update(created_at=F("created_at") - 24 * hour)
    call_command("housekeep")
    assert ask("k").json()["orderId"] != first["orderId"]


def test_a_payment_finds_its_keys_among_many_of_its_user() -> None:
    kept = (IdempotencyKey(user_id=ALICE, operation="pay", key=str(n), response=b"{}") for n in range(5000))
    IdempotencyKey.objects.bulk_create(kept)
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE orders_idempotencykey")
    with CaptureQueriesContext(connection) as queries:
        response = PaidOrder(order_id=4711, status="PAID", paid_at=datetime.now(UTC))
        store_response(user_id=ALICE, operation="pay", parameters=b"4711", response=response)
    (update,) = queries
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN {update['sql']}")
        plan = [line for (line,) in cursor.fetchall()]
    assert "idempotency_key_unanswered" in "\n".join(plan)


def test_the_kept_answer_is_the_body_that_was_sent(ask: Ask) -> None:
    first = ask("k")
    assert json.loads(bytes(IdempotencyKey.objects.get().response or b"")) == first.json()
