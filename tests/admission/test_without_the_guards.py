"""Each guard of the admissions taken away: then what it prevents does happen."""

from __future__ import annotations

import threading

import pytest

from coupons.admission.gate import load
from coupons.admission.gate.store import GateStore
from coupons.models import IssueRequest
from coupons.redis_queue import queue

from .conftest import MakeGate, accept, answer, crowd, issue, stock
from .gates import flush, loads
from .workers import killed_with, work

pytestmark = pytest.mark.django_db(transaction=True)


def test_without_counting_what_is_under_way_more_would_be_promised_than_there_is(
    make_gate: MakeGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    coupon = make_gate(total_quantity=1)
    accept(coupon, 1)
    flush()
    uncounting = load._READ.replace("FROM coupons_reservation WHERE", "FROM coupons_reservation WHERE false AND")
    monkeypatch.setattr(load, "_READ", uncounting)
    broken_promise = accept(coupon, 2)
    issue()
    assert answer(broken_promise.request_id) == ("FAILED", "SOLD_OUT")


@pytest.mark.usefixtures("every_request_alone")
def test_without_the_lock_many_would_load_it(make_gate: MakeGate, monkeypatch: pytest.MonkeyPatch) -> None:
    coupon = make_gate(total_quantity=50)

    def own_lock(gate: GateStore) -> str:
        return f"gate:{{{gate.coupon_id}}}:lock:{threading.get_ident()}"

    together = threading.Barrier(20)
    activate = GateStore.activate

    def activate_at_once(gate: GateStore, token: str) -> int | None:
        together.wait(10)
        return activate(gate, token)

    monkeypatch.setattr(GateStore, "lock_key", property(own_lock))
    monkeypatch.setattr(GateStore, "activate", activate_at_once)
    before = loads()
    crowd(coupon, range(1, 21))
    assert loads() - before == 20


@pytest.mark.usefixtures("everybody", "nothing_is_pushed_again", "looks_around_at_once")
def test_without_the_backup_list_a_killed_worker_would_lose_its_requests(
    make_gate: MakeGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "_CLAIM", queue._CLAIM.replace("redis.call('RPUSH', KEYS[2], request)", ""))
    coupon = make_gate()
    for user_id in range(1, 8):
        accept(coupon, user_id)
    killed_with(4)
    work()
    assert stock(coupon) == (0, 3)


@pytest.mark.usefixtures("everybody", "looks_around_at_once", "nothing_is_pushed_again")
def test_without_pushing_again_a_flushed_redis_would_lose_everybody(make_gate: MakeGate) -> None:
    accept(make_gate(), 1)
    flush()
    work()
    assert not IssueRequest.objects.exists()
