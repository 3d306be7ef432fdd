"""A client that does not know whether it was heard asks again under the same key."""

import json
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from django.test import Client

from common.processes.lifecycle import StopFlag
from coupons.consumer_groups import ISSUE
from coupons.coupon_cache import coupon_cache
from coupons.issuance.idempotency import find_existing_requests
from coupons.models import Coupon
from kafka_bridge.consuming.batch import BatchHandler
from kafka_bridge.models import OutboxMessage
from tests.support.messages import message
from tests.support.threads import OpenTransaction, in_another_session, wait_until_blocked

MakeCoupon = Callable[..., Coupon]
Token = Callable[..., dict[str, str]]


@pytest.fixture
def ask(client: Client, token: Token) -> Callable[..., Any]:
    """Posts to a coupon's issue endpoint under a key."""

    def post(coupon: Coupon, key: str, *, user_id: int = 7, scope: str = "", **body: Any) -> Any:
        headers = token(user_id, scope) | {"Idempotency-Key": key}
        path = f"/api/v1/coupons/{coupon.id}/issue-async"
        return client.post(path, json.dumps(body), content_type="application/json", headers=headers)

    return post


Ask = Callable[..., Any]


@pytest.mark.django_db
def test_the_same_key_is_the_same_request(ask: Ask, make_coupon: MakeCoupon) -> None:
    coupon = make_coupon()
    first, again = ask(coupon, "k"), ask(coupon, "k")
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json() == again.json()
    assert OutboxMessage.objects.count() == 1


@pytest.mark.django_db
def test_another_key_and_another_caller_are_other_requests(ask: Ask, make_coupon: MakeCoupon) -> None:
    coupon = make_coupon()
    answers = [ask(coupon, "k"), ask(coupon, "l"), ask(coupon, "k", user_id=8)]
    assert len({answer.json()["requestId"] for answer in answers}) == 3


@pytest.mark.django_db
def test_the_same_key_for_another_coupon_or_user_is_refused(ask: Ask, make_coupon: MakeCoupon) -> None:
    coupon = make_coupon()
    ask(coupon, "k")
    for answer in (
        ask(make_coupon(), "k"),
        ask(coupon, "k", scope="coupons:issue-for-others", userId=8),
    ):
        assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_key_reused")
    assert OutboxMessage.objects.count() == 1


@pytest.mark.django_db
def test_a_repeat_is_answered_even_when_the_coupon_has_closed(ask: Ask, make_coupon: MakeCoupon) -> None:
    coupon = make_coupon()
    first = ask(coupon, "k")
    Coupon.objects.update(closes_at="2020-01-02T00:00:00Z")
    coupon_cache.clear()
    assert ask(coupon, "k").json() == first.json()
    assert ask(coupon, "l").status_code == 409


@pytest.mark.django_db
def test_a_refusal_is_not_kept(ask: Ask, make_coupon: MakeCoupon) -> None:
    coupon = make_coupon(paused=True)
    assert ask(coupon, "k").status_code == 409
    Coupon.objects.update(paused=False)
    coupon_cache.clear()
    assert ask(coupon, "k").status_code == 202


@pytest.mark.django_db(transaction=True)
def test_a_key_outlives_its_outbox_row(ask: Ask, make_coupon: MakeCoupon) -> None:
    coupon = make_coupon()
    first = ask(coupon, "k")
    row = OutboxMessage.objects.get()
    BatchHandler(ISSUE).handle([message(bytes(row.payload or b""))], StopFlag())
    OutboxMessage.objects.all().delete()
    assert ask(coupon, "k").json() == first.json()
    assert ask(make_coupon(), "k").status_code == 422
    assert OutboxMessage.objects.count() == 0


@pytest.mark.django_db
def test_an_outbox_row_that_cannot_be_read_fails_its_own_key_only(ask: Ask, make_coupon: MakeCoupon) -> None:
    coupon = make_coupon()
    bad, good = (UUID(ask(coupon, key, user_id=user_id).json()["requestId"]) for key, user_id in (("k", 7), ("l", 8)))
    OutboxMessage.objects.filter(event_id=bad).update(payload=b"{}")
    # Both are repeated at the same moment, and so read together.
    assert list(find_existing_requests([bad, good])) == [good]
    assert ask(coupon, "l", user_id=8).status_code == 202


@pytest.mark.django_db(transaction=True)
def test_two_under_one_key_at_once_are_one_request(make_coupon: MakeCoupon) -> None:
    from coupons.issuance.accept import request_accept

    coupon = make_coupon()
    coupon_cache.get(coupon.id)

    def accept() -> Any:
        return request_accept(id_or_type=coupon.id, user_id=7, caller_id=7, idempotency_key="k")

    first: list[Any] = []
    with OpenTransaction(lambda: first.append(accept())) as open_request:
        second = in_another_session(accept)
        wait_until_blocked()
        open_request.commit()
        assert second.result(10) == first[0]
    assert OutboxMessage.objects.count() == 1


@pytest.mark.parametrize("key", ["", "x" * 256, "caf\u00e9", "a\tb"], ids=["empty", "too long", "not ASCII", "a tab"])
@pytest.mark.django_db
def test_a_key_that_is_none_is_refused(key: str, ask: Ask, make_coupon: MakeCoupon) -> None:
    answer = ask(make_coupon(), key)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid")
