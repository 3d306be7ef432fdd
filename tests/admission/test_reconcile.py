"""What the reconciler finds and repairs of requests: leaked, lost on the way, and those that nothing is wrong with."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db.models.functions import Now
from uuid_utils.compat import uuid7

from common.processes.lifecycle import StopFlag
from common.processes.outages import ServiceUnavailable
from coupons.admission.gate.admission import Gate
from coupons.admission.gate.store import GateStore
from coupons.issuance.finish import GATE_ADMITTED_REFUSED
from coupons.models import Coupon, IssueRequest, Reservation, UserCoupon
from coupons.reconciliation import gate as gate_check
from coupons.reconciliation import outbox as outbox_check
from coupons.reconciliation.reconciler import Reconciler
from coupons.redis_queue.queue import QUEUE, WORKERS
from devstack import wait_until
from kafka_bridge.models import Alert, OutboxMessage
from tests.support.messages import message
from tests.support.published import unpublished_rows
from tests.support.threads import OpenTransaction

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
from .conftest import accept, answer, ask, assert_invariants, gate_of, issue, set_share, stock
from .workers import (
    work,
)

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def coupon(make_coupon: Callable[..., Coupon]) -> Coupon:
    return make_coupon(admission="gate", total_quantity=10)


def test_what_waits_is_told_and_is_not_wrong(coupon: Coupon) -> None:
    accept(coupon, 1)
    accept(coupon, 2)
    issue()
    accept(coupon, 3)
    leave_in_gate(coupon, 4)
    reconciled = compare(repair=True)
    assert reconciled.found.counts == {}
    assert reconciled.found.waiting == 1
    assert gate_of(coupon) == ({1, 2, 3, 4}, {3, 4})


def test_a_request_that_waits_long_for_its_turn_is_not_lost(coupon: Coupon) -> None:
    accept(coupon, 1)
    publish_everything()
    make_old(coupon)
    reconciled = compare(repair=True, lag=lambda: 1)
    assert (reconciled.found.counts, reconciled.found.waiting) == ({}, 1)
    assert unpublished_rows().count() == 0


def test_a_leaked_reservation_ends_and_its_piece_goes_to_the_next(make_coupon: Callable[..., Coupon]) -> None:
    coupon = make_coupon(admission="gate", total_quantity=1)
    leaked = leave_in_gate(coupon, 1)
    assert ask(coupon, 2) == "sold_out"
    make_old(coupon)
    assert found() == {"gate-leaked": 1}
    assert gate_of(coupon) == ({1}, {1})
    assert mend() == {"gate-leaked": 1}
    assert answer(leaked.request_id) == ("FAILED", "ERROR")
    assert ask(coupon, 2) == "accepted"
    assert_invariants()


def test_a_reservation_is_not_released_before_its_request_has_ended(
    coupon: Coupon, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaked = leave_in_gate(coupon, 1)
    make_old(coupon)

    def fail(**_: Any) -> None:
        raise ServiceUnavailable("PostgreSQL went away")

    monkeypatch.setattr(gate_check, "fail_orphaned_requests", fail)
    assert compare(repair=True).outage is not None
    assert gate_of(coupon) == ({1}, {1})
    assert not IssueRequest.objects.filter(request_id=leaked.request_id).exists()


def test_who_was_killed_between_end_and_release_is_released_the_next_time(
    coupon: Coupon, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_in_gate(coupon, 1)
    make_old(coupon)
    with monkeypatch.context() as patched:
        patched.setattr("coupons.issuance.finish.notify_finished", lambda finished: None)
        compare(repair=True)
    assert gate_of(coupon) == ({1}, {1})
    make_old(coupon)
    assert mend() == {"gate-untold": 1}
    assert gate_of(coupon) == (set(), set())


def test_an_insert_that_comes_after_the_end_gives_nobody_a_coupon_and_leaves_nothing_behind(coupon: Coupon) -> None:
    for carrier in ("kafka", "worker"):
        set_share(100 if carrier == "worker" else 0)
        user_id = 1 if carrier == "kafka" else 2
        late = late_insert(coupon, user_id)
        assert answer(late) == ("FAILED", "ERROR")
        if carrier == "kafka":
            issue_again()
        else:
            work()
        assert answer(late) == ("FAILED", "ERROR")
        assert not Reservation.objects.exists()
        assert not UserCoupon.objects.filter(user_id=user_id).exists()
    assert ask(coupon, 1) == "accepted"
    assert_invariants()


def late_insert(coupon: Coupon, user_id: int) -> Any:
    """An accept API that hangs between gate and insert until its request was ended."""
    confirm = Gate.confirm
    request_ids: list[Any] = []

    def hang(gate: Gate, admitted: Any) -> Any:
        request_ids.extend(one.request_id for one in admitted)
        make_old(coupon)
        compare(repair=True)
        return confirm(gate, admitted)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Gate, "confirm", hang)
        accept(coupon, user_id)
    assert Reservation.objects.filter(user_id=user_id).exists()
    return request_ids[0]


def issue_again() -> None:
    """The issuer gets every request, the decided ones too."""

    issue(
        [message(bytes(row.payload or b"")) for row in OutboxMessage.objects.filter(event_type__contains="requested")]
    )


def test_a_late_row_that_nobody_reads_is_given_back(coupon: Coupon) -> None:
    late_insert(coupon, 1)
    assert found() == {}
    make_old(coupon)
    assert mend() == {"reservation-decided": 1}
    assert not Reservation.objects.exists()


@pytest.mark.parametrize("admission", ["queue", "gate", "reserve"])
def test_what_the_topic_lost_is_published_again_under_its_id(
    make_coupon: Callable[..., Coupon], admission: str
) -> None:
    coupon = make_coupon(admission=admission)
    decided, lost = accept(coupon, 1), None
    issue()
    lost = accept(coupon, 2)
    publish_everything()
    assert found() == {}
    make_old(coupon)
    assert mend() == {"published-undecided": 1}
    assert unpublished_rows().get().event_id == lost.request_id
    assert unpublished_rows().get().event_id != decided.request_id
    issue()
    assert answer(lost.request_id) == ("SUCCESS", None)
    assert_invariants()


def test_what_is_decided_while_the_lag_is_asked_for_is_not_lost(make_coupon: Callable[..., Coupon]) -> None:
    coupon = make_coupon()
    accept(coupon, 1)
    publish_everything()
    make_old(coupon)

    def decide_meanwhile() -> int:
        issue()
        return 0

    assert found(repair=True, lag=decide_meanwhile) == {}


def test_what_the_workers_list_lost_is_pushed_again(coupon: Coupon) -> None:
    set_share(100)
    lost = accept(coupon, 1)
    redis().delete(QUEUE)
    kept = accept(coupon, 2)
    make_old(coupon)
    assert mend() == {"worker-lost": 1}
    assert {text.decode() for text in redis().lrange(QUEUE, 0, -1)} == {str(lost.request_id), str(kept.request_id)}


def test_garbage_in_the_workers_list_is_in_nobodys_way(coupon: Coupon) -> None:
    set_share(100)
    lost = accept(coupon, 1)
    redis().delete(QUEUE)
    redis().rpush(QUEUE, "garbage", b"\xff\xfe", "", str(uuid7()))
    redis().sadd(WORKERS, b"\xff\xfe", "")
    make_old(coupon)
    assert mend() == {"worker-lost": 1}
    work()
    assert answer(lost.request_id) == ("SUCCESS", None)
    assert not redis().exists(QUEUE)


def test_what_stands_in_place_of_the_workers_list_is_removed(coupon: Coupon) -> None:
    set_share(100)
    lost = accept(coupon, 1)
    redis().set(QUEUE, "x")
    redis().sadd(WORKERS, "w")
    redis().set("{issue-worker}:backup:w", "x")
    make_old(coupon)
    assert found() == {"worker-foreign": 2}
    assert mend() == {"worker-foreign": 2, "worker-lost": 1}
    redis().delete(WORKERS)
    redis().set(WORKERS, "x")
    assert mend() == {"worker-foreign": 1}
    work()
    assert answer(lost.request_id) == ("SUCCESS", None)


def test_decided_rows_are_read_once(
    make_coupon: Callable[..., Coupon], django_assert_max_num_queries: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    coupon = make_coupon(total_quantity=1000)
    monkeypatch.setattr(outbox_check, "_CHUNK", 10)
    for user_id in range(1, 101):
        accept(coupon, user_id)
    issue()
    accept(coupon, 101)
    comparison = Reconciler(0.5, once=False, lag=nothing_left_to_read)
    assert comparison.run(StopFlag(), repair=False).found.waiting == 1
    comparison.run(StopFlag(), repair=False)
    with django_assert_max_num_queries(25):
        assert comparison.run(StopFlag(), repair=False).found.waiting == 1
    # Its patience begins when it first sees the row published, however old the request is.
    make_old(coupon)
    publish_everything()
    assert comparison.run(StopFlag(), repair=False).found.counts == {}
    wait_until(
        lambda: comparison.run(StopFlag(), repair=False).found.counts == {"published-undecided": 1},
        10,
        "the lost request is not found",
    )


def test_a_row_that_is_committed_below_one_that_was_read_is_not_missed(make_coupon: Callable[..., Coupon]) -> None:
    coupon = make_coupon()
    comparison = Reconciler(PATIENCE, once=False, lag=nothing_left_to_read)
    with OpenTransaction(partial(accept, coupon, 1)) as slow:
        accept(coupon, 2)
        for _ in range(3):
            assert comparison.run(StopFlag(), repair=False).found.waiting == 1
        slow.commit()
    assert comparison.run(StopFlag(), repair=False).found.waiting == 2


def test_the_operator_hears_once_that_the_issuer_refused_what_the_gate_let_in(
    make_coupon: Callable[..., Coupon],
) -> None:
    coupon = make_coupon(admission="gate", total_quantity=2)
    for user_id in range(1, 3):
        accept(coupon, user_id)
    redis().hdel(GateStore(coupon.id).keys.holders, 1, 2)
    for user_id in range(3, 5):
        accept(coupon, user_id)
    issue()
    [alert] = Alert.objects.all()
    assert (alert.rule, alert.severity, alert.ended_at) == (GATE_ADMITTED_REFUSED.name, "warning", None)
    compare(repair=True)
    assert Alert.objects.get().ended_at is None
    Alert.objects.update(started_at=Now() - timedelta(minutes=11))
    compare(repair=True)
    assert Alert.objects.get().ended_at is not None


def test_without_a_refusal_there_is_no_alert(coupon: Coupon) -> None:
    for user_id in range(1, 4):
        accept(coupon, user_id)
    issue()
    assert not Alert.objects.exists()


def test_the_command_tells_what_is_wrong_and_its_exit_says_so(
    coupon: Coupon, topics: str, capsys: pytest.CaptureFixture[str]
) -> None:
    call_command("reconcile")
    leaked = leave_in_gate(coupon, 1)
    make_old(coupon)
    with pytest.raises(CommandError, match="1 gate-leaked"):
        call_command("reconcile")
    assert str(leaked.request_id) in capsys.readouterr().out
    call_command("reconcile", "--repair")
    call_command("reconcile")


def test_while_redis_is_away_what_needs_none_is_mended(make_coupon: Callable[..., Coupon], redis_away: None) -> None:
    coupon = make_coupon()
    accept(coupon, 1)
    Coupon.objects.filter(id=coupon.id).update(reserved=1)
    publish_everything()
    make_old_without_redis()
    reconciled = compare(repair=True)
    assert reconciled.outage is not None
    assert reconciled.found.counts == {"counter-reserved": 1, "published-undecided": 1}
    assert stock(coupon) == (0, 0)


def make_old_without_redis() -> None:
    ago = Now() - timedelta(minutes=2)
    OutboxMessage.objects.update(created_at=ago, published_at=ago)
