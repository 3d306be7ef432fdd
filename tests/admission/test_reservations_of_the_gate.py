"""Reservations of the gate and how they end, also with a commit that fails."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import OperationalError, connection

from common.processes.lifecycle import StopFlag
from coupons.admission import ADMISSIONS, FinishedRequest
from coupons.admission.gate.releasing import release
from coupons.admission.gate.store import GateStore
from coupons.consumer_groups import RESULTS
from coupons.coupon_cache import coupon_cache
from coupons.issuance import accept_group, finish
from coupons.models import Coupon, UserCoupon
from kafka_bridge.consuming.batch import BatchHandler
from kafka_bridge.models import OutboxMessage
from kafka_bridge.outbox.writing import insert_new_rows
from tests.support.messages import message

from .conftest import (
    MakeGate,
    accept,
    ask,
    gate_of,
    issue,
)
from .gates import candidate, flush, holders, use_and_refund

pytestmark = pytest.mark.django_db(transaction=True)


def test_with_the_coupon_a_reservation_becomes_final(make_gate: MakeGate) -> None:
    coupon = make_gate()
    accept(coupon, 1)
    assert gate_of(coupon) == ({1}, {1})
    issue()
    assert gate_of(coupon) == ({1}, set())


def test_a_piece_that_others_gave_away_is_taken_in_the_gate_too(make_gate: MakeGate) -> None:
    coupon = make_gate(total_quantity=2)
    accept(coupon, 1)
    Coupon.objects.update(admission="queue")
    coupon_cache.clear()
    accept(coupon, 2)
    issue()
    assert gate_of(coupon) == ({1, 2}, set())


def test_a_process_killed_between_gate_and_insert_leaves_what_a_later_release_finds(make_gate: MakeGate) -> None:
    coupon = make_gate(total_quantity=1)
    killed = candidate(coupon, 1)
    ADMISSIONS["gate"].admit([killed])
    assert killed.newly_reserved
    assert ask(coupon, 2) == "sold_out"

    gate = GateStore(coupon.id)
    assert gate.pending_for(60, limit=10) == []
    [found] = gate.read(gate.pending_for(0, limit=10)).entries
    assert (found.request_id, found.user_id) == (killed.request_id, 1)
    assert found.age_seconds is not None
    assert 0 <= found.age_seconds < 60

    ended = [FinishedRequest(killed.request_id, coupon.id, 1, "ERROR")]
    release(ended)
    assert ask(coupon, 2) == "accepted"
    release(ended)
    assert gate_of(coupon) == ({2}, {2})


def test_a_late_release_leaves_the_users_next_request_alone(make_gate: MakeGate) -> None:
    coupon = make_gate()
    first = candidate(coupon, 1)
    ADMISSIONS["gate"].admit([first])
    gone = [FinishedRequest(first.request_id, coupon.id, 1, "ERROR")]
    release(gone)
    accept(coupon, 1)
    release(gone)
    assert gate_of(coupon) == ({1}, {1})


def test_a_piece_that_a_refund_returned_goes_to_another_user(make_gate: MakeGate) -> None:
    coupon = make_gate(total_quantity=1, refund_policy="RETURN_TO_POOL")
    accept(coupon, 1)
    issue()
    use_and_refund(UserCoupon.objects.get())

    assert [ask(coupon, 1), ask(coupon, 2), ask(coupon, 3)] == ["already_issued", "accepted", "sold_out"]
    flush()
    assert [ask(coupon, 1), ask(coupon, 3)] == ["already_issued", "sold_out"]


def tell_results() -> None:
    """The results of all requests reach the group that tells of them, once more or for the first time."""
    rows = OutboxMessage.objects.filter(event_type__in=RESULTS.event_types).order_by("id")
    for row in rows:
        headers = (("ce_type", row.event_type.encode()), ("ce_id", str(row.event_id).encode()))
        told = message(bytes(row.payload or b""), topic=row.topic, headers=headers)
        BatchHandler(RESULTS).handle([told], StopFlag())


def test_what_an_issuer_that_died_did_not_tell_the_gate_the_result_event_does(
    make_gate: MakeGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    coupon = make_gate()
    accept(coupon, 1)
    Coupon.objects.update(total_quantity=0)
    with monkeypatch.context() as dead_after_the_commit:
        dead_after_the_commit.setattr(finish, "notify_finished", lambda ended: None)
        issue()
    assert gate_of(coupon) == ({1}, {1})
    tell_results()
    assert gate_of(coupon) == (set(), set())


def test_a_success_that_is_told_late_does_not_take_a_returned_piece_again(make_gate: MakeGate) -> None:
    coupon = make_gate(total_quantity=1, refund_policy="RETURN_TO_POOL")
    accept(coupon, 1)
    issue()
    use_and_refund(UserCoupon.objects.get())
    tell_results()
    assert [ask(coupon, 1), ask(coupon, 2)] == ["already_issued", "accepted"]


def test_an_answer_lost_at_the_commit_gives_nothing_back(make_gate: MakeGate, monkeypatch: pytest.MonkeyPatch) -> None:
    coupon = make_gate(total_quantity=2)
    accept(coupon, 3)
    commit = connection.commit

    def commit_and_lose_the_answer() -> None:
        commit()
        raise OperationalError("server closed the connection unexpectedly")

    with monkeypatch.context() as patch:
        patch.setattr(connection, "commit", commit_and_lose_the_answer)
        with pytest.raises(OperationalError):
            accept(coupon, 1)
    assert ask(coupon, 2) == "sold_out"
    issue()
    assert holders() == {1, 3}


def test_a_session_that_ends_before_the_commit_gives_back_what_was_taken(
    make_gate: MakeGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    coupon = make_gate(total_quantity=1)
    insert = insert_new_rows

    def insert_and_end_the_session(rows: Any) -> Any:
        inserted = insert(rows)
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        return inserted

    with monkeypatch.context() as patch:
        patch.setattr(accept_group, "insert_new_rows", insert_and_end_the_session)
        with pytest.raises(OperationalError):
            accept(coupon, 1)
    connection.close()
    assert ask(coupon, 2) == "accepted"
