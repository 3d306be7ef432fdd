"""What the reconciler finds and mends: everything that can go wrong between gate, list, outbox and PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.db.models import F
from django.db.models.functions import Now
from django_redis import get_redis_connection
from uuid_utils.compat import uuid7

from common.processes.lifecycle import StopFlag
from common.processes.outages import ServiceUnavailable
from coupons.admission import ADMISSIONS, AdmissionRequest
from coupons.admission.gate import store
from coupons.admission.gate.redis_keys import Keys, keys, lock_key
from coupons.issuance import accept_group, fail_orphaned
from coupons.issuance.finish import GATE_ADMITTED_REFUSED
from coupons.models import Coupon, IssueRequest, Reservation, UserCoupon
from coupons.reconciliation import gate as gate_check
from coupons.reconciliation import outbox as outbox_check
from coupons.reconciliation.reconciler import NOT_RECONCILED, Reconciled, Reconciler
from coupons.redis_queue.queue import QUEUE, WORKERS
from devstack import wait_until
from kafka_bridge.models import Alert, OutboxMessage
from tests.support.messages import message
from tests.support.threads import OpenTransaction

from .conftest import accept, answer, ask, assert_invariants, at_once, crowd, gate_of, issue, stock
from .test_the_worker import set_share, work

pytestmark = pytest.mark.django_db(transaction=True)

PATIENCE = 60.0


def redis() -> Any:
    return get_redis_connection("default")


def nothing_left_to_read() -> int:
    return 0


def compare(*, repair: bool = False, patience: float = PATIENCE, lag: Callable[[], int] | None = None) -> Reconciled:
    return Reconciler(patience, once=True, lag=lag or nothing_left_to_read).run(StopFlag(), repair=repair)


def found(**options: Any) -> dict[str, int]:
    return compare(**options).found.counts


def mend() -> dict[str, int]:
    """Mend everything, see that it is mended and stays so; returns what was found."""
    reconciled = compare(repair=True)
    assert reconciled.outage is None
    assert reconciled.remaining.counts == {}
    assert compare(repair=True).found.counts == {}
    return reconciled.found.counts


def make_old(coupon: Coupon) -> None:
    """As if everything under way had been under way for two minutes."""
    ago = Now() - timedelta(minutes=2)
    Reservation.objects.update(created_at=ago)
    OutboxMessage.objects.update(created_at=ago)
    OutboxMessage.objects.exclude(published_at=None).update(published_at=ago)
    IssueRequest.objects.update(processed_at=ago)
    for user, at in redis().zrange(keys(coupon.id).pending, 0, -1, withscores=True):
        redis().zadd(keys(coupon.id).pending, {user: at - 120_000})


def leave_in_gate(coupon: Coupon, user_id: int) -> AdmissionRequest:
    """A web process was killed between gate and insert."""
    candidate = AdmissionRequest(uuid7(), user_id, coupon.id, coupon.total_quantity)
    assert ADMISSIONS["gate"].admit([candidate])[0].newly_reserved
    return candidate


def publish_everything() -> None:
    OutboxMessage.objects.filter(published_at=None).update(published_at=Now())


@pytest.fixture
def coupon(make_coupon: Callable[..., Coupon]) -> Coupon:
    return make_coupon(admission="gate", total_quantity=10)


# Nothing is wrong


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
    assert OutboxMessage.objects.filter(published_at=None).count() == 0


# Leaked


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
        patched.setattr("coupons.issuance.finish._notify_admissions", lambda rows: None)
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
    """A door that hangs between gate and insert until its request was ended."""
    write = accept_group._write
    request_ids: list[Any] = []

    def hang(admission: Any, admitted: Any) -> Any:
        request_ids.extend(one.request_id for one in admitted)
        make_old(coupon)
        compare(repair=True)
        return write(admission, admitted)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(accept_group, "_write", hang)
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


# During traffic


def open_past_patience(coupon_id: int) -> set[bytes]:
    """Who has been open for longer than ``Running`` is patient, by Redis's clock."""
    return set(store.pending_for(coupon_id, Running.PATIENCE, limit=10_000))


@pytest.fixture
def slow_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the read of the gate and that of PostgreSQL everybody becomes older than the patience."""
    known = gate_check._known

    def slowly(coupon_id: int, members: Any) -> Any:
        users = {str(one.user_id).encode() for one in members}
        wait_until(lambda: users <= open_past_patience(coupon_id), 10, "nobody grows older", 0.02)
        return known(coupon_id, members)

    monkeypatch.setattr(gate_check, "_known", slowly)


@pytest.fixture
def postgresql_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reverse order: what PostgreSQL knows of requests is read before the gate is."""
    look, known = store.look, gate_check._known
    accepted: set[Any] = set()

    def look_late(coupon_id: int, users: Any) -> Any:
        if not users or isinstance(users[0], int):
            return look(coupon_id, users)
        before = open_past_patience(coupon_id)
        accepted.update(OutboxMessage.objects.values_list("event_id", flat=True))
        # In vain once the crowd is over.
        with suppress(TimeoutError):
            wait_until(lambda: len(open_past_patience(coupon_id) - before) > 100, 2, "nobody comes", 0.02)
        return look(coupon_id, list({*users, *(field for some in store.fields(coupon_id) for field in some)}))

    def known_before(coupon_id: int, members: Any) -> Any:
        now = known(coupon_id, members)
        unknown = gate_check._Request(False, False, None, None)
        return now._replace(requests={id_: one if id_ in accepted else unknown for id_, one in now.requests.items()})

    monkeypatch.setattr(store, "look", look_late)
    monkeypatch.setattr(gate_check, "_known", known_before)


@pytest.fixture
def no_second_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fail_orphaned, "_unwritten", set)


class Running:
    """Compares and mends again and again beside the crowd."""

    PATIENCE = 0.4

    def __init__(self) -> None:
        self._stop = StopFlag()
        self._thread = threading.Thread(target=self._run)
        self.found: dict[str, int] = {}
        self.times = 0

    def __enter__(self) -> Running:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.request()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stop:
                reconciled = Reconciler(self.PATIENCE, once=True, lag=lambda: 1).run(StopFlag(), repair=True)
                for name, number in reconciled.found.counts.items():
                    self.found[name] = self.found.get(name, 0) + number
                self.times += 1
        finally:
            connection.close()


def crowd_of_three_lines(coupon: Coupon, until: Callable[[Running], object]) -> Running:
    """What a reconciler does beside three lines of users who ask one after the other."""

    def ask_one_after_the_other(users: range) -> None:
        for user_id in users:
            assert ask(coupon, user_id) == "accepted"
            if until(running):
                return

    accept(coupon, 1)
    with Running() as running:
        lines = [range(start, start + 10_000) for start in (10_000, 20_000, 30_000)]
        at_once([partial(ask_one_after_the_other, users) for users in lines], threads=3)
    return running


def has_run_twice(running: Running) -> bool:
    return running.times >= 2


def has_found_leaks(running: Running) -> bool:
    return "gate-leaked" in running.found


@pytest.fixture
def wide(make_coupon: Callable[..., Coupon]) -> Coupon:
    return make_coupon(admission="gate", total_quantity=50_000)


def test_a_crowd_is_left_alone_however_long_the_reads_take(
    wide: Coupon, slow_reads: None, no_second_look: None
) -> None:
    assert crowd_of_three_lines(wide, has_run_twice).found == {}
    assert not IssueRequest.objects.exists()


def test_in_the_reverse_order_of_reads_innocents_would_be_ended(
    wide: Coupon, postgresql_first: None, no_second_look: None
) -> None:
    crowd_of_three_lines(wide, has_found_leaks)
    assert IssueRequest.objects.filter(reason="ERROR").exists()


def test_before_a_request_is_ended_it_is_looked_for_once_more(wide: Coupon, postgresql_first: None) -> None:
    assert has_found_leaks(crowd_of_three_lines(wide, has_found_leaks))
    assert not IssueRequest.objects.exists()


def test_a_crowd_gets_the_whole_stock_beside_a_reconciler(make_coupon: Callable[..., Coupon]) -> None:
    coupon = make_coupon(admission="gate", total_quantity=100)
    over = threading.Event()

    def issue_until_over() -> None:
        while not over.is_set():
            issue()

    with Running() as running:
        issuer = threading.Thread(target=partial(_in_thread, issue_until_over))
        issuer.start()
        told = crowd(coupon, range(1, 301))
        over.set()
        issuer.join()
    issue()
    assert told == {"accepted": 100, "sold_out": 200}
    assert running.found == {}
    assert set(IssueRequest.objects.values_list("status", flat=True)) == {"SUCCESS"}
    assert gate_of(coupon) == (set(UserCoupon.objects.values_list("user_id", flat=True)), set())
    assert_invariants()


def _in_thread(work: Callable[[], None]) -> None:
    try:
        work()
    finally:
        connection.close()


# Poisoned data


def test_whoever_is_missing_in_the_gate_is_added(coupon: Coupon) -> None:
    accept(coupon, 1)
    issue()
    accept(coupon, 2)
    redis().hdel(keys(coupon.id).holders, 1, 2)
    redis().zrem(keys(coupon.id).pending, 2)
    assert mend() == {"gate-missing": 2}
    assert gate_of(coupon) == ({1, 2}, {2})
    assert ask(coupon, 1) == ask(coupon, 2) == "already_issued"


def test_whoever_is_in_the_gate_for_nothing_is_taken_out(coupon: Coupon) -> None:
    accept(coupon, 1)
    redis().hset(keys(coupon.id).holders, 7, "-")
    redis().sadd(keys(coupon.id).revoked, 8, "nobody")
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
    redis().srem(keys(coupon.id).revoked, 1)
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
        patched.setattr("coupons.issuance.finish._notify_admissions", lambda rows: None)
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
    redis().hset(keys(coupon.id).holders, field, entry)
    redis().zadd(keys(coupon.id).pending, {field: 1})
    assert set(mend()) == {"gate-foreign"}
    assert gate_of(coupon) == ({1}, {1})


def test_what_is_open_without_being_in_is_forgotten(coupon: Coupon) -> None:
    accept(coupon, 1)
    redis().zadd(keys(coupon.id).pending, {5: 1, "x": 2})
    assert mend() == {"gate-foreign": 2}
    assert gate_of(coupon) == ({1}, {1})


@pytest.mark.parametrize("hours", [1, 1e300, float("inf")])
def test_a_reservation_of_a_time_to_come_grows_old_all_the_same(coupon: Coupon, hours: float) -> None:
    leave_in_gate(coupon, 1)
    seconds, _ = redis().time()
    redis().zadd(keys(coupon.id).pending, {1: (seconds + 3600 * hours) * 1000})
    assert mend() == {"gate-foreign": 1}
    make_old(coupon)
    assert mend() == {"gate-leaked": 1}


@pytest.mark.parametrize("moment", [0, -1e300, float("-inf")])
def test_a_reservation_from_before_all_time_is_leaked(coupon: Coupon, moment: float) -> None:
    leave_in_gate(coupon, 1)
    redis().zadd(keys(coupon.id).pending, {1: moment})
    assert mend() == {"gate-leaked": 1}
    assert gate_of(coupon) == (set(), set())


def test_an_entry_that_was_never_open_is_ended_before_it_goes(coupon: Coupon) -> None:
    accept(coupon, 1)
    request_id = uuid7()
    redis().hset(keys(coupon.id).holders, 2, f"{request_id}:1")
    assert mend() == {"gate-leaked": 1}
    assert answer(request_id) == ("FAILED", "ERROR")
    assert gate_of(coupon) == ({1}, {1})


@pytest.mark.parametrize("sequence", ["0", "1.5", "-4", "1e3", " 7", "0x10", "9" * 16, "9" * 20])
def test_a_wrong_sequence_is_set_behind_the_last_place(coupon: Coupon, sequence: str) -> None:
    accept(coupon, 1)
    accept(coupon, 2)
    redis().hset(keys(coupon.id).holders, "sequence", sequence)
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
    lose(keys(coupon.id))
    assert mend() == {"gate-half-loaded": 1}
    assert not redis().exists(*keys(coupon.id))
    assert ask(coupon, 2) == "accepted"
    assert gate_of(coupon) == ({1, 2}, {1, 2})


def test_a_gate_of_other_kinds_of_keys_is_dropped(coupon: Coupon) -> None:
    redis().set(keys(coupon.id).holders, "x")
    redis().hset(keys(coupon.id).revoked, "x", "y")
    assert mend() == {"gate-half-loaded": 1}
    assert ask(coupon, 1) == "accepted"


def test_keys_that_are_no_gates_are_removed_and_those_of_a_loader_are_not(coupon: Coupon) -> None:
    accept(coupon, 1)
    redis().set("something:else", "stays")
    redis().set("gate:backup", "x")
    redis().hset("gate:{999999}", "sequence", 3)
    redis().set(lock_key(coupon.id), "mine")
    redis().hset(f"gate:{{{coupon.id}}}:loading:gone", 1, "-")
    redis().hset(f"gate:{{{coupon.id}}}:loading:mine", 1, "-")
    # The lock never runs out, so it is nobody's; what it protects is foreign with the next look.
    assert found() == {"gate-foreign": 4}
    redis().expire(lock_key(coupon.id), 100)
    assert mend() == {"gate-foreign": 3}
    assert redis().exists("something:else", lock_key(coupon.id), f"gate:{{{coupon.id}}}:loading:mine") == 3
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


def test_what_no_counter_can_mend_is_told_and_opens_one_alert(make_coupon: Callable[..., Coupon]) -> None:
    coupon = make_coupon(total_quantity=1)
    for user_id in (1, 2):
        UserCoupon.objects.create(coupon=coupon, user_id=user_id, issued_at="2026-01-01T00:00:00Z")
    for _ in range(2):
        assert compare(repair=True).remaining.counts == {"counter-issued": 1}
    assert stock(coupon) == (0, 0)
    [alert] = Alert.objects.all()
    assert (alert.rule, alert.severity, alert.ended_at) == (NOT_RECONCILED, "critical", None)
    UserCoupon.objects.filter(user_id=2).delete()
    assert mend() == {"counter-issued": 1}
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
        redis().hset(keys(coupon.id).holders, user_id, f"{request.request_id}:0")
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
    redis().hset(keys(coupon.id).holders, mapping={"2": f"{request_id}:0", "3": f"{request_id}:0"})
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
    takers = keys(gate.id).holders
    redis().hdel(takers, 1, 5)
    redis().hset(takers, mapping={"sequence": 1, "8": "-", "x": "y"})
    redis().sadd(keys(gate.id).revoked, 9)
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


# Lost on the way


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
    assert OutboxMessage.objects.get(event_id=lost.request_id).published_at is None
    assert OutboxMessage.objects.get(event_id=decided.request_id).published_at is not None
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
    comparison = Reconciler(PATIENCE, once=False, lag=nothing_left_to_read)
    assert comparison.run(StopFlag(), repair=False).found.waiting == 1
    comparison.run(StopFlag(), repair=False)
    with django_assert_max_num_queries(25):
        assert comparison.run(StopFlag(), repair=False).found.waiting == 1
    publish_everything()
    make_old(coupon)
    assert comparison.run(StopFlag(), repair=False).found.counts == {"published-undecided": 1}


def test_a_row_that_is_committed_below_one_that_was_read_is_not_missed(make_coupon: Callable[..., Coupon]) -> None:
    coupon = make_coupon()
    comparison = Reconciler(PATIENCE, once=False, lag=nothing_left_to_read)
    with OpenTransaction(partial(accept, coupon, 1)) as slow:
        accept(coupon, 2)
        for _ in range(3):
            assert comparison.run(StopFlag(), repair=False).found.waiting == 1
        slow.commit()
    assert comparison.run(StopFlag(), repair=False).found.waiting == 2


# Alerts


def test_the_operator_hears_once_that_the_issuer_refused_what_the_gate_let_in(
    make_coupon: Callable[..., Coupon],
) -> None:
    coupon = make_coupon(admission="gate", total_quantity=2)
    for user_id in range(1, 3):
        accept(coupon, user_id)
    redis().hdel(keys(coupon.id).holders, 1, 2)
    for user_id in range(3, 5):
        accept(coupon, user_id)
    issue()
    [alert] = Alert.objects.all()
    assert (alert.rule, alert.severity, alert.ended_at) == (GATE_ADMITTED_REFUSED, "warning", None)
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


# The command


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
    OutboxMessage.objects.update(published_at=Now() - timedelta(minutes=2))
