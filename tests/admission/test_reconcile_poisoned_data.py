"""What the reconciler finds and repairs of data that no process of ours would write."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from django.db.models import F
from pytest_django import Settings
from uuid_utils.compat import uuid7

from common.processes.lifecycle import StopFlag
from coupons.admission.gate.redis_keys import Keys
from coupons.admission.gate.store import GateStore
from coupons.models import Coupon, Reservation, UserCoupon
from coupons.reconciliation.reconciler import NOT_RECONCILED, Reconciler
from kafka_bridge.models import Alert, OutboxMessage
from tests.support.messages import message

from .comparisons import (
    PATIENCE,
    compare,
    found,
    leave_in_gate,
    make_old,
    mend,
    nothing_left_to_read,
    publish_everything,
    redis,
)
from .conftest import accept, answer, ask, assert_invariants, at_once, gate_of, issue, stock

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def coupon(make_coupon: Callable[..., Coupon]) -> Coupon:
    return make_coupon(admission="gate", total_quantity=10)


def test_whoever_is_missing_in_the_gate_is_added(coupon: Coupon) -> None:
    accept(coupon, 1)
    issue()
    accept(coupon, 2)
    redis().hdel(GateStore(coupon.id).keys.holders, 1, 2)
    redis().zrem(GateStore(coupon.id).keys.pending, 2)
    assert mend() == {"gate-missing": 2}
    assert gate_of(coupon) == ({1, 2}, {2})
    assert ask(coupon, 1) == ask(coupon, 2) == "already_issued"


def test_whoever_is_in_the_gate_for_nothing_is_taken_out(coupon: Coupon) -> None:
    accept(coupon, 1)
    redis().hset(GateStore(coupon.id).keys.holders, 7, "-")
    redis().sadd(GateStore(coupon.id).keys.revoked, 8, "nobody")
    assert mend() == {"gate-extra": 3}
    assert gate_of(coupon) == ({1}, {1})
    assert ask(coupon, 7) == ask(coupon, 8) == "accepted"


def test_who_gave_a_piece_back_is_barred_and_not_counted(coupon: Coupon) -> None:
    accept(coupon, 1)
    accept(coupon, 2)
    issue()
    UserCoupon.objects.filter(user_id=1).update(status="REVOKED")
    Coupon.objects.filter(id=coupon.id).update(issued=1)
    assert mend() == {"gate-extra": 1}
    assert gate_of(coupon) == ({2}, set())
    redis().srem(GateStore(coupon.id).keys.revoked, 1)
    assert mend() == {"gate-missing": 1}
    assert ask(coupon, 1) == "already_issued"


def test_decisions_that_the_gate_did_not_hear_of_are_told_to_it(
    coupon: Coupon, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept(coupon, 1)
    accept(coupon, 2)
    Reservation.objects.filter(user_id=2).delete()
    UserCoupon.objects.create(coupon=coupon, user_id=2, issued_at="2026-01-01T00:00:00Z")
    Coupon.objects.filter(id=coupon.id).update(issued=1)
    with monkeypatch.context() as patched:
        patched.setattr("coupons.issuance.finish.notify_finished", lambda finished: None)
        issue()
    assert found() == {}
    make_old(coupon)
    assert mend() == {"gate-untold": 2}
    assert gate_of(coupon) == ({1, 2}, set())


@pytest.mark.parametrize(
    ("field", "entry"),
    [
        ("-3", "-"), ("0", "-"), ("abc", "-"), ("9223372036854775808", "-"), ("3", ""), ("3", "x"), ("3", b"\xff\x00"),
        ("4", "not-a-uuid-but-as-long-as-a-uuid-isss:1"), ("", "-"),
    ],
)  # fmt: skip
def test_fields_that_no_gate_writes_are_removed(coupon: Coupon, field: str, entry: str | bytes) -> None:
    accept(coupon, 1)
    redis().hset(GateStore(coupon.id).keys.holders, field, entry)
    redis().zadd(GateStore(coupon.id).keys.pending, {field: 1})
    assert set(mend()) == {"gate-foreign"}
    assert gate_of(coupon) == ({1}, {1})


def test_what_is_open_without_being_in_is_forgotten(coupon: Coupon) -> None:
    accept(coupon, 1)
    redis().zadd(GateStore(coupon.id).keys.pending, {5: 1, "x": 2})
    assert mend() == {"gate-foreign": 2}
    assert gate_of(coupon) == ({1}, {1})


@pytest.mark.parametrize("hours", [1, 1e300, float("inf")])
def test_a_reservation_of_a_time_to_come_grows_old_all_the_same(coupon: Coupon, hours: float) -> None:
    leave_in_gate(coupon, 1)
    seconds, _ = redis().time()
    redis().zadd(GateStore(coupon.id).keys.pending, {1: (seconds + 3600 * hours) * 1000})
    assert mend() == {"gate-foreign": 1}
    make_old(coupon)
    assert mend() == {"gate-leaked": 1}


@pytest.mark.parametrize("moment", [0, -1e300, float("-inf")])
def test_a_reservation_from_before_all_time_is_leaked(coupon: Coupon, moment: float) -> None:
    leave_in_gate(coupon, 1)
    redis().zadd(GateStore(coupon.id).keys.pending, {1: moment})
    assert mend() == {"gate-leaked": 1}
    assert gate_of(coupon) == (set(), set())


def test_an_entry_that_was_never_open_is_ended_before_it_goes(coupon: Coupon) -> None:
    accept(coupon, 1)
    request_id = uuid7()
    redis().hset(GateStore(coupon.id).keys.holders, 2, f"{request_id}:1")
    assert mend() == {"gate-leaked": 1}
    assert answer(request_id) == ("FAILED", "ERROR")
    assert gate_of(coupon) == ({1}, {1})


@pytest.mark.parametrize("sequence", ["0", "1.5", "-4", "1e3", " 7", "0x10", "9" * 16, "9" * 20])
def test_a_wrong_sequence_is_set_behind_the_last_place(coupon: Coupon, sequence: str) -> None:
    accept(coupon, 1)
    accept(coupon, 2)
    redis().hset(GateStore(coupon.id).keys.holders, "sequence", sequence)
    assert mend() == {"gate-sequence": 1}
    assert accept(coupon, 3).sequence == 3


@pytest.mark.parametrize(
    "lose",
    [
        lambda names: redis().hdel(names.holders, "sequence"),
        lambda names: redis().hset(names.holders, "sequence", "x"),
        lambda names: redis().delete(names.holders),
        lambda names: redis().delete(names.pending),
        lambda names: redis().delete(names.revoked),
    ],
    ids=["sequence", "number", "holders", "pending", "revoked"],
)
def test_a_half_loaded_gate_is_dropped_and_loads_itself(
    lose: Callable[[Keys], object], make_coupon: Callable[..., Coupon]
) -> None:
    coupon = make_coupon(admission="gate", total_quantity=2)
    accept(coupon, 1)
    lose(GateStore(coupon.id).keys)
    assert mend() == {"gate-half-loaded": 1}
    assert not redis().exists(*GateStore(coupon.id).keys)
    assert ask(coupon, 2) == "accepted"
    assert gate_of(coupon) == ({1, 2}, {1, 2})


def test_a_gate_of_other_kinds_of_keys_is_dropped(coupon: Coupon) -> None:
    redis().set(GateStore(coupon.id).keys.holders, "x")
    redis().hset(GateStore(coupon.id).keys.revoked, "x", "y")
    assert mend() == {"gate-half-loaded": 1}
    assert ask(coupon, 1) == "accepted"


def test_keys_that_are_no_gates_are_removed_and_those_of_a_loader_are_not(coupon: Coupon) -> None:
    accept(coupon, 1)
    redis().set("something:else", "stays")
    redis().set("gate:backup", "x")
    redis().hset("gate:{999999}", "sequence", 3)
    redis().set(GateStore(coupon.id).lock_key, "mine")
    redis().hset(f"gate:{{{coupon.id}}}:loading:gone", 1, "-")
    redis().hset(f"gate:{{{coupon.id}}}:loading:mine", 1, "-")
    # The lock never runs out, so it is nobody's; what it protects is foreign with the next look.
    assert found() == {"gate-foreign": 4}
    redis().expire(GateStore(coupon.id).lock_key, 100)
    assert mend() == {"gate-foreign": 3}
    assert redis().exists("something:else", GateStore(coupon.id).lock_key, f"gate:{{{coupon.id}}}:loading:mine") == 3
    assert ask(coupon, 2) == "accepted"


def test_counters_are_counted_again(make_coupon: Callable[..., Coupon]) -> None:
    coupon = make_coupon(admission="reserve", total_quantity=10)
    accept(coupon, 1)
    issue()
    accept(coupon, 2)
    Coupon.objects.filter(id=coupon.id).update(reserved=4, issued=6)
    assert ask(coupon, 3) == "sold_out"
    assert mend() == {"counter-reserved": 1, "counter-issued": 1}
    assert stock(coupon) == (1, 1)
    Coupon.objects.filter(id=coupon.id).update(reserved=0, issued=0)
    mend()
    assert stock(coupon) == (1, 1)
    assert_invariants()


def test_the_stock_is_never_raised_above_what_is_left_of_it(make_coupon: Callable[..., Coupon]) -> None:
    coupon = make_coupon(admission="reserve", total_quantity=5)
    for user_id in range(1, 4):
        accept(coupon, user_id)
    issue()
    for user_id in (4, 5):
        accept(coupon, user_id)
    Coupon.objects.filter(id=coupon.id).update(reserved=0, issued=0)
    mend()
    assert [ask(coupon, user_id) for user_id in range(6, 9)] == ["sold_out"] * 3
    issue()
    assert stock(coupon) == (0, 5)
    assert_invariants()


def test_what_no_counter_can_mend_is_told_and_opens_one_alert(
    make_coupon: Callable[..., Coupon], settings: Settings
) -> None:
    settings.ALERT_END_SECONDS = 60
    coupon = make_coupon(total_quantity=1)
    for user_id in (1, 2):
        UserCoupon.objects.create(coupon=coupon, user_id=user_id, issued_at="2026-01-01T00:00:00Z")
    for _ in range(2):
        assert compare(repair=True).remaining.counts == {"counter-issued": 1}
    assert stock(coupon) == (0, 0)
    [alert] = Alert.objects.all()
    assert (alert.rule, alert.severity, alert.ended_at) == (NOT_RECONCILED.name, "critical", None)
    stop = StopFlag()
    stop.request()
    Reconciler(PATIENCE, once=True, lag=nothing_left_to_read).run(stop, repair=True)
    assert Alert.objects.get().ended_at is None, "a run that was stopped compared nothing a second time"
    UserCoupon.objects.filter(user_id=2).delete()
    assert mend() == {"counter-issued": 1}
    assert Alert.objects.get().ended_at is None, "an alert that comes and goes is one"
    settings.ALERT_END_SECONDS = 0
    mend()
    assert Alert.objects.get().ended_at is not None


def test_a_reservation_without_a_request_ends_and_is_given_back(make_coupon: Callable[..., Coupon]) -> None:
    coupon = make_coupon(admission="reserve", total_quantity=1)
    accepted = accept(coupon, 1)
    OutboxMessage.objects.filter(event_id=accepted.request_id).delete()
    make_old(coupon)
    assert mend() == {"reservation-alone": 1}
    assert answer(accepted.request_id) == ("FAILED", "ERROR")
    assert stock(coupon) == (0, 0)
    assert ask(coupon, 2) == "accepted"
    assert_invariants()


def test_a_promise_whose_reservation_is_gone_is_not_given_to_others(make_coupon: Callable[..., Coupon]) -> None:
    coupon = make_coupon(admission="reserve", total_quantity=2)
    accept(coupon, 1)
    accept(coupon, 2)
    Reservation.objects.filter(user_id=1).delete()
    assert mend() == {"counter-reserved": 1}
    assert stock(coupon) == (2, 0)
    assert ask(coupon, 3) == "sold_out"
    issue()
    assert set(UserCoupon.objects.values_list("user_id", flat=True)) == {1, 2}
    assert_invariants()


def test_no_more_is_reserved_again_than_there_is(make_coupon: Callable[..., Coupon]) -> None:
    coupon = make_coupon(admission="reserve", total_quantity=3)
    ended = [accept(coupon, user_id) for user_id in (1, 2, 3)][2]
    Reservation.objects.all().delete()
    OutboxMessage.objects.create(
        event_id=uuid7(), event_type="coupon.issue.requested.v1", topic="x", shard=0,
        payload=b'{"admission":"reserve"} and nonsense',
    )  # fmt: skip
    issue([message(b"{", headers=(("ce_id", str(ended.request_id).encode()),))])
    UserCoupon.objects.create(coupon=coupon, user_id=9, issued_at="2026-01-01T00:00:00Z")
    Coupon.objects.update(total_quantity=3, issued=1, reserved=1)
    Coupon.objects.filter(id=coupon.id).update(total_quantity=2)
    assert mend() == {"counter-reserved": 1}
    assert stock(coupon) == (1, 1)
    assert list(Reservation.objects.values_list("user_id", flat=True)) == [1]


def test_a_reservation_of_a_coupon_that_does_not_exist_ends(make_coupon: Callable[..., Coupon]) -> None:
    coupon = make_coupon()
    stray = Reservation.objects.create(request_id=uuid7(), coupon_id=coupon.id + 1000, user_id=1, admission="reserve")
    make_old(coupon)
    assert mend() == {"reservation-alone": 1}
    assert answer(stray.request_id) == ("FAILED", "UNKNOWN_COUPON")


def test_who_is_in_the_gate_by_a_request_of_somebody_else_is_taken_out_once_that_is_decided(
    coupon: Coupon, make_coupon: Callable[..., Coupon]
) -> None:
    theirs, elsewhere = accept(coupon, 1), accept(make_coupon(), 2)
    for user_id, request in ((2, theirs), (3, elsewhere)):
        redis().hset(GateStore(coupon.id).keys.holders, user_id, f"{request.request_id}:0")
    make_old(coupon)
    assert found(lag=lambda: 1) == {}
    issue()
    assert found() == {}
    make_old(coupon)
    assert mend() == {"gate-extra": 2}
    assert gate_of(coupon) == ({1}, set())
    assert ask(coupon, 2) == ask(coupon, 3) == "accepted"


def test_one_request_in_the_gate_for_several_users_ends_once(coupon: Coupon) -> None:
    accept(coupon, 1)
    request_id = uuid7()
    redis().hset(GateStore(coupon.id).keys.holders, mapping={"2": f"{request_id}:0", "3": f"{request_id}:0"})
    assert compare(repair=True).found.counts == {"gate-leaked": 2}
    assert answer(request_id) == ("FAILED", "ERROR")
    make_old(coupon)
    mend()
    assert gate_of(coupon) == ({1}, {1})


def test_a_counter_that_is_too_low_keeps_nobody_from_the_end(make_coupon: Callable[..., Coupon]) -> None:
    coupon = make_coupon(admission="reserve", total_quantity=3)
    accepted = [accept(coupon, user_id) for user_id in (1, 2, 3)]
    OutboxMessage.objects.filter(event_id=accepted[0].request_id).delete()
    make_old(coupon)
    Coupon.objects.update(reserved=0)
    assert mend() == {"reservation-alone": 1, "counter-reserved": 1}
    assert stock(coupon) == (2, 0)
    Coupon.objects.update(reserved=0)
    issue()
    assert [answer(one.request_id)[0] for one in accepted] == ["FAILED", "SUCCESS", "SUCCESS"]
    assert stock(coupon) == (0, 2)


def poison(gate: Coupon, reserve: Coupon) -> None:
    """Everything that can be wrong, of each at least one."""
    for user_id in range(1, 5):
        accept(gate, user_id)
        accept(reserve, user_id)
    issue()
    for user_id in (5, 6):
        accept(gate, user_id)
        accept(reserve, user_id)
    leave_in_gate(gate, 7)
    publish_everything()
    make_old(gate)
    takers = GateStore(gate.id).keys.holders
    redis().hdel(takers, 1, 5)
    redis().hset(takers, mapping={"sequence": 1, "8": "-", "x": "y"})
    redis().sadd(GateStore(gate.id).keys.revoked, 9)
    redis().set("gate:other", 1)
    Coupon.objects.update(reserved=F("reserved") + 1, issued=F("issued") + 2)


def test_several_reconcilers_at_once_mend_as_one_would(make_coupon: Callable[..., Coupon]) -> None:
    gate, reserve = make_coupon(admission="gate"), make_coupon(admission="reserve")
    poison(gate, reserve)
    at_once([partial(compare, repair=True)] * 3, threads=3)
    assert found() == {}
    issue()
    assert gate_of(gate) == ({1, 2, 3, 4, 5, 6}, set())
    assert (stock(gate), stock(reserve)) == ((0, 6), (0, 6))
    assert_invariants()


def test_everything_wrong_at_once_is_mended_at_once(make_coupon: Callable[..., Coupon]) -> None:
    gate, reserve = make_coupon(admission="gate"), make_coupon(admission="reserve")
    poison(gate, reserve)
    assert mend() == {
        "published-undecided": 4, "gate-leaked": 1, "gate-extra": 2, "gate-missing": 2, "gate-foreign": 2 + 1,
        "gate-sequence": 1, "counter-reserved": 2, "counter-issued": 2,
    }  # fmt: skip
    issue()
    assert gate_of(gate) == ({1, 2, 3, 4, 5, 6}, set())
    assert (stock(gate), stock(reserve)) == ((0, 6), (0, 6))
    assert_invariants()
