"""A request that ended with ERROR keeps its result; the replay of its dead letter opens and decides a new one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from django.db.models.functions import Now
from django.test import Client

from common.processes.lifecycle import StopFlag
from coupons.consumer_groups import ISSUE
from coupons.coupon_cache import coupon_cache
from coupons.issuance import replay_request
from coupons.issuance.replay_request import replay_id
from coupons.messages import ISSUE_SUCCEEDED
from coupons.models import Coupon, IssueRequest, Reservation, UserCoupon
from kafka_bridge.consuming.batch import BatchHandler
from kafka_bridge.consuming.dead_letters import write_dead_letters
from kafka_bridge.errors import ReplayPostponed
from kafka_bridge.models import DeadLetter, OutboxMessage
from kafka_bridge.redriving import replay
from kafka_bridge.redriving.replay import ReplayResult, replay_letter
from kafka_bridge.registry import Rejected
from tests.support.threads import in_another_session, lock, wait_until_blocked

from .conftest import accept, answer, ask, assert_invariants, gate_of, issue, messages_on_their_way, stock

pytestmark = pytest.mark.django_db(transaction=True)

MakeCoupon = Callable[..., Coupon]
ALL = pytest.mark.parametrize("admission", ["queue", "gate", "reserve"])


@pytest.fixture(autouse=True)
def _no_pause_between_tries(settings: Any) -> None:
    settings.CONSUMER_BACKOFF_SECONDS = 0.01


def fault(tasks: object) -> None:
    raise RuntimeError("a fault of the issuer")


def fail_everything() -> None:
    """An issuer with a fault dead-letters what is on its way."""
    BatchHandler(replace(ISSUE, handle=fault)).handle(messages_on_their_way(), StopFlag())


def failed(coupon: Coupon, user_id: int) -> tuple[UUID, DeadLetter]:
    """A request of the user that ended with ERROR, and its dead letter."""
    request_id = accept(coupon, user_id).request_id
    fail_everything()
    assert answer(request_id) == ("FAILED", "ERROR")
    return request_id, DeadLetter.objects.latest("id")


def replayed(letter: DeadLetter) -> tuple[ReplayResult, str]:
    return replay_letter(letter.pk, StopFlag())[1:]


def new_request(first: UUID) -> IssueRequest:
    return IssueRequest.objects.get(replay_of=first)


@ALL
def test_the_replay_issues_to_the_user_and_tells_the_result(admission: str, make_coupon: MakeCoupon) -> None:
    coupon = make_coupon(admission=admission, total_quantity=2)
    first, letter = failed(coupon, 1)
    assert replayed(letter) == (ReplayResult.APPLIED, f"SUCCESS: request {replay_id(first, letter.pk, 1)} of user 1")
    new = new_request(first)
    assert (new.request_id, new.status, new.user_id) == (replay_id(first, letter.pk, 1), "SUCCESS", 1)
    assert answer(first) == ("FAILED", "ERROR")
    assert UserCoupon.objects.get().id == new.user_coupon_id
    payload = OutboxMessage.objects.get(event_type=ISSUE_SUCCEEDED).payload
    assert f'"requestId":"{new.request_id}"'.encode() in bytes(payload or b"")
    assert (stock(coupon), Reservation.objects.count()) == ((0, 1), 0)
    assert_invariants()


@ALL
def test_what_was_decided_otherwise_is_done_already(admission: str, make_coupon: MakeCoupon) -> None:
    coupon = make_coupon(admission=admission)
    accept(coupon, 1)
    (message,) = messages_on_their_way()
    issue([message])
    write_dead_letters("issue", "issue", [Rejected(message, RuntimeError("a fault"))], publish=False)
    letter = DeadLetter.objects.get()
    assert replayed(letter)[0] == ReplayResult.DONE_ALREADY
    letter.refresh_from_db()
    assert letter.state == "replayed"
    assert (IssueRequest.objects.count(), stock(coupon)) == (1, (0, 1))


@ALL
def test_the_stock_and_one_per_user_hold_for_replays(admission: str, make_coupon: MakeCoupon) -> None:
    coupon = make_coupon(admission=admission, total_quantity=1)
    first, letter = failed(coupon, 1)
    assert ask(coupon, 2) == "accepted"
    issue()
    assert replayed(letter)[1].startswith("SOLD_OUT: ")
    assert new_request(first).reason == "SOLD_OUT"
    Coupon.objects.update(total_quantity=3)
    coupon_cache.clear()
    again, other = failed(coupon, 1)
    assert ask(coupon, 1) == "accepted"
    issue()
    assert replayed(other)[1].startswith("ALREADY_ISSUED: ")
    assert new_request(again).reason == "ALREADY_ISSUED"
    assert stock(coupon) == (0, 2)
    assert_invariants()


@ALL
def test_a_window_that_closed_since_fails_no_replay(admission: str, make_coupon: MakeCoupon) -> None:
    coupon = make_coupon(admission=admission)
    first, letter = failed(coupon, 1)
    Coupon.objects.update(opens_at=Now(), closes_at=Now(), paused=True)
    replayed(letter)
    assert new_request(first).status == "SUCCESS"


def test_the_gate_knows_the_holder_of_a_replay(make_coupon: MakeCoupon) -> None:
    coupon = make_coupon(admission="gate", total_quantity=2)
    _, letter = failed(coupon, 1)
    assert gate_of(coupon) == (set(), set())
    replayed(letter)
    assert gate_of(coupon) == ({1}, set())
    assert [ask(coupon, user_id) for user_id in (1, 2, 3)] == ["already_issued", "accepted", "sold_out"]


@pytest.mark.parametrize("user_id", [1, 2])
def test_a_unit_that_the_gate_has_promised_is_not_issued_to_a_replay(user_id: int, make_coupon: MakeCoupon) -> None:
    """Of another user the last unit is pending, or the user's own new request."""
    coupon = make_coupon(admission="gate", total_quantity=1)
    first, letter = failed(coupon, 1)
    promised = accept(coupon, user_id).request_id
    with pytest.raises(ReplayPostponed):
        replayed(letter)
    letter.refresh_from_db()
    assert (letter.state, letter.replays, UserCoupon.objects.count()) == ("open", 0, 0)
    issue()
    assert answer(promised) == ("SUCCESS", None)
    replayed(letter)
    assert new_request(first).reason == ("ALREADY_ISSUED" if user_id == 1 else "SOLD_OUT")
    assert_invariants()


def test_a_replay_that_is_postponed_waits_for_no_lock_of_its_coupon(make_coupon: MakeCoupon) -> None:
    coupon = make_coupon(admission="gate", total_quantity=1)
    _, letter = failed(coupon, 1)
    accept(coupon, 2)
    with lock("SELECT FROM coupons_coupon WHERE id = %s FOR NO KEY UPDATE", coupon.pk), pytest.raises(ReplayPostponed):
        replayed(letter)


def twin_of(letter: DeadLetter) -> DeadLetter:
    """Another dead letter of the same request."""
    return DeadLetter.objects.create(
        **{name: getattr(letter, name) for name in ("consumer_group", "topic", "partition", "offset", "event_type")},
        message_timestamp=1, payload=letter.payload, headers=letter.headers, error_class="E", error_message="",
    )  # fmt: skip


def test_two_letters_of_one_request_open_one_request(make_coupon: MakeCoupon) -> None:
    coupon = make_coupon()
    _, letter = failed(coupon, 1)
    assert [replayed(letter)[0], replayed(twin_of(letter))[0]] == [ReplayResult.APPLIED, ReplayResult.DONE_ALREADY]
    assert (IssueRequest.objects.count(), UserCoupon.objects.count()) == (2, 1)


def replay_at_once(first: DeadLetter, second: DeadLetter, coupon: Coupon) -> list[ReplayResult]:
    """Two replays that begin while the coupon is locked."""
    with lock("SELECT FROM coupons_coupon WHERE id = %s FOR UPDATE", coupon.pk) as holder:
        results = [in_another_session(lambda: replayed(first)[0])]
        wait_until_blocked()
        results.append(in_another_session(lambda: replayed(second)[0]))
        wait_until_blocked(2)
        holder.commit()
        return sorted(result.result(10) for result in results)


def without_the_lock_of_the_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "_lock", lambda letter_id: DeadLetter.objects.get(pk=letter_id))


def without_the_lock_of_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_request, "_locked", lambda request_id: IssueRequest.objects.get(request_id=request_id))


def test_two_replays_at_once_have_one_effect(make_coupon: MakeCoupon) -> None:
    coupon = make_coupon()
    _, letter = failed(coupon, 1)
    assert replay_at_once(letter, letter, coupon) == [ReplayResult.APPLIED, ReplayResult.DONE_ALREADY]
    letter.refresh_from_db()
    assert (letter.state, letter.replays, stock(coupon)) == ("replayed", 1, (0, 1))
    assert_invariants()


def test_without_any_lock_the_second_replay_would_fail(
    make_coupon: MakeCoupon, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_the_lock_of_the_letter(monkeypatch)
    without_the_lock_of_the_request(monkeypatch)
    coupon = make_coupon()
    _, letter = failed(coupon, 1)
    assert replay_at_once(letter, letter, coupon) != [ReplayResult.APPLIED, ReplayResult.DONE_ALREADY]


def test_two_letters_of_one_request_at_once_have_one_effect_and_neither_fails(make_coupon: MakeCoupon) -> None:
    coupon = make_coupon()
    first, letter = failed(coupon, 1)
    twin = twin_of(letter)
    assert replay_at_once(letter, twin, coupon) == [ReplayResult.APPLIED, ReplayResult.DONE_ALREADY]
    twin.refresh_from_db()
    assert (twin.state, twin.last_error) == ("replayed", "")
    assert new_request(first).status == "SUCCESS"
    assert_invariants()


def test_without_the_lock_of_the_request_the_second_letter_would_count_a_failed_replay(
    make_coupon: MakeCoupon, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_the_lock_of_the_request(monkeypatch)
    coupon = make_coupon()
    _, letter = failed(coupon, 1)
    assert replay_at_once(letter, twin_of(letter), coupon) == [ReplayResult.APPLIED, ReplayResult.FAILED]


def test_a_request_that_the_broker_refused_is_opened_again(make_coupon: MakeCoupon) -> None:
    coupon = make_coupon(admission="reserve", total_quantity=1)
    first, letter = failed(coupon, 1)
    DeadLetter.objects.filter(pk=letter.pk).update(consumer_group="relay", event_type="coupon.issue.requested.v1")
    assert replayed(letter)[0] == ReplayResult.APPLIED
    assert new_request(first).status == "SUCCESS"
    assert_invariants()


def test_the_api_answers_for_both_requests(make_coupon: MakeCoupon, client: Client, token: Any) -> None:
    first, letter = failed(make_coupon(), 1)
    replayed(letter)
    new = new_request(first).request_id
    answers = [
        client.get(f"/api/v1/issue-requests/{request_id}", headers=token(1)).json() for request_id in (first, new)
    ]
    assert [(item["status"], item["reason"]) for item in answers] == [("FAILED", "ERROR"), ("SUCCESS", None)]
