"""A dead letter is handled again by the group that failed, and closed in the transaction of the effect."""

from __future__ import annotations

import pytest
from django.db import OperationalError, transaction

from common.processes.lifecycle import StopFlag
from kafka_bridge.consuming.dead_letters import FOREIGN
from kafka_bridge.models import MOST_REPLAYS, DeadLetter, OperatorAction, ProcessedEvent
from kafka_bridge.redriving.discarding import discard_letters, release_letters
from kafka_bridge.redriving.replay import Replayed, ReplayResult, replay_in_transaction, replay_letter
from orders.models import OrderMinute
from tests.effects.cast import completed
from tests.redriving.cast import Fault, faulty, letter_of
from tests.support.threads import in_another_session, lock, wait_until_blocked

pytestmark = pytest.mark.django_db(transaction=True)

LOCK_LETTER = "SELECT FROM kafka_bridge_deadletter WHERE id = %s FOR UPDATE"


def replayed(letter: DeadLetter) -> ReplayResult:
    return replay_letter(letter.pk, StopFlag()).result


def state(letter: DeadLetter) -> tuple[str, int]:
    letter.refresh_from_db()
    return letter.state, letter.replays


def paid() -> int:
    """How many payments were counted."""
    return sum(OrderMinute.objects.values_list("completed", flat=True))


def test_the_effect_comes_with_the_closing_of_the_letter() -> None:
    message = completed(1)
    letter = letter_of("monitoring", message)
    assert replay_letter(letter.pk, StopFlag()) == Replayed(
        letter.pk, ReplayResult.APPLIED, f"handled: event {message.event_id}"
    )
    assert (state(letter), paid()) == (("replayed", 1), 1)
    assert ProcessedEvent.objects.filter(consumer_group="monitoring", event_id=message.inbox_id).exists()


def test_a_letter_is_replayed_once() -> None:
    letter = letter_of("monitoring", completed(1))
    assert [replayed(letter), replayed(letter)] == [ReplayResult.APPLIED, ReplayResult.DONE_ALREADY]
    assert (state(letter), paid()) == (("replayed", 1), 1)


def test_an_event_that_was_handled_since_has_no_second_effect() -> None:
    message = completed(1)
    letter = letter_of("monitoring", message)
    ProcessedEvent.objects.create(consumer_group="monitoring", event_id=message.inbox_id)
    assert (replayed(letter), state(letter), paid()) == (ReplayResult.DONE_ALREADY, ("replayed", 1), 0)


def test_a_failure_leaves_no_effect_and_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    letter = letter_of("monitoring", completed(1), ValueError("the first error"))
    fault = Fault(RuntimeError("still a fault"))
    faulty("monitoring", fault, monkeypatch)
    result = replay_letter(letter.pk, StopFlag())
    assert (result.result, result.detail) == (ReplayResult.FAILED, "RuntimeError: still a fault")
    assert (state(letter), paid()) == (("open", 1), 0)
    assert (letter.error_class, letter.error_message) == ("ValueError", "the first error")
    assert letter.last_error == "RuntimeError: still a fault"
    assert letter.last_seen_at is not None
    assert letter.last_seen_at > letter.created_at
    fault.error = None
    assert (replayed(letter), state(letter), paid()) == (ReplayResult.APPLIED, ("replayed", 2), 1)


def test_an_unavailable_service_is_no_failed_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    letter = letter_of("monitoring", completed(1))
    faulty("monitoring", Fault(OperationalError("the server is away")), monkeypatch)
    with pytest.raises(OperationalError):
        replayed(letter)
    assert (state(letter), paid()) == (("open", 0), 0)


def test_after_three_failures_a_letter_is_in_quarantine_until_an_operator_releases_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    letter = letter_of("monitoring", completed(1))
    fault = Fault(RuntimeError("a fault"))
    faulty("monitoring", fault, monkeypatch)
    assert [replayed(letter) for _ in range(MOST_REPLAYS)] == [ReplayResult.FAILED] * MOST_REPLAYS
    fault.error = None
    assert (replayed(letter), state(letter), paid()) == (ReplayResult.QUARANTINED, ("quarantined", 3), 0)
    assert release_letters([letter.pk], actor="olga", reason="the fault is corrected") == 1
    action = OperatorAction.objects.get()
    assert (action.actor, action.action, action.reason) == ("olga", "dead_letter.release", "the fault is corrected")
    assert (replayed(letter), paid()) == (ReplayResult.APPLIED, 1)


@pytest.mark.parametrize("group", [FOREIGN, "group-of-a-former-version"])
def test_a_letter_that_no_group_can_handle_is_only_discarded(group: str) -> None:
    letter = letter_of(group, completed(1))
    assert (replayed(letter), state(letter)) == (ReplayResult.UNREPLAYABLE, ("open", 0))
    assert discard_letters([letter.pk], actor="olga", reason="not ours") == 1
    assert (replayed(letter), state(letter)) == (ReplayResult.DONE_ALREADY, ("discarded", 0))


def test_a_letter_that_was_deleted_has_nothing_left_to_do() -> None:
    assert replay_letter(1, StopFlag()).result == ReplayResult.DONE_ALREADY


def test_a_preview_says_what_would_happen_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = letter_of("monitoring", completed(1)), letter_of("notification", completed(2))
    faulty("notification", Fault(RuntimeError("a fault")), monkeypatch)
    with transaction.atomic():
        results = [replay_in_transaction(letter).result for letter in (bad, good)]
        transaction.set_rollback(True)
    assert results == [ReplayResult.FAILED, ReplayResult.APPLIED]
    assert ([state(good), state(bad)], paid()) == ([("open", 0)] * 2, 0)


def test_a_second_replay_waits_for_the_first() -> None:
    letter = letter_of("monitoring", completed(1))
    with lock(LOCK_LETTER, letter.pk) as first:
        second = in_another_session(lambda: replayed(letter))
        wait_until_blocked()
        third = in_another_session(lambda: replayed(letter))
        wait_until_blocked(2)
        first.commit()
        assert sorted([second.result(10), third.result(10)]) == [ReplayResult.APPLIED, ReplayResult.DONE_ALREADY]
    assert (state(letter), paid()) == (("replayed", 1), 1)


def test_a_letter_locked_for_long_fails_no_replay() -> None:
    letter = letter_of("monitoring", completed(1))
    with lock(LOCK_LETTER, letter.pk), pytest.raises(OperationalError, match="lock timeout"):
        replayed(letter)
    assert state(letter) == ("open", 0)


def test_a_redelivered_message_is_seen_again_unless_its_letter_is_being_replayed() -> None:
    message = completed(1)
    letter = letter_of("monitoring", message)
    assert letter.last_seen_at is None
    with lock(LOCK_LETTER, letter.pk):
        letter_of("monitoring", message)
        assert DeadLetter.objects.get().last_seen_at is None
    letter_of("monitoring", message)
    assert DeadLetter.objects.get().last_seen_at is not None
