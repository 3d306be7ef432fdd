"""A redrive replays a frozen set of dead letters, as its preview said."""

from __future__ import annotations

import dataclasses
import threading
import time
from datetime import timedelta
from typing import Any

import pytest
from django.db import IntegrityError, connection
from django.db.models.functions import Now

from common.postgres.clock import database_time, isoformat_z
from common.processes.lifecycle import StopFlag
from devstack import wait_until
from kafka_bridge.errors import ReplayPostponed
from kafka_bridge.models import DeadLetter, OperatorAction, Redrive, RedriveItem
from kafka_bridge.redriving import executor as executor_module
from kafka_bridge.redriving import letter_filter
from kafka_bridge.redriving.executor import RedriveExecutor, RedriveThread
from kafka_bridge.redriving.letter_filter import LetterFilter
from kafka_bridge.redriving.redrives import (
    RedriveRefused,
    redrive_cancel,
    redrive_pause,
    redrive_preview,
    redrive_resume,
    redrive_set_rate,
    redrive_start,
)
from kafka_bridge.registry import ReplayedMessage, groups
from orders.models import OrderMinute
from tests.effects.cast import completed, many_completed
from tests.redriving.cast import changed, faulty
from tests.redriving.letters import (
    Refused,
    counts_of_preview,
    create,
    dead_letters,
    execute,
    insert_letters,
    start,
    step,
    to_the_end,
)
from tests.support.messages import message
from tests.support.plans import queries_of, reads_of
from tests.support.provider import Call, Provider
from tests.support.threads import OpenTransaction, lock

pytestmark = pytest.mark.django_db(transaction=True)

MOMENT_SECONDS = 20.0


def open_letters() -> int:
    return DeadLetter.objects.filter(closed_at=None).count()


def test_what_the_preview_says_is_what_happens(alimtalk: Provider) -> None:
    dead_letters("notification", many_completed(range(1, 21)))
    redrive = execute(create())
    assert counts_of_preview(redrive) == redrive.counts == {"applied": 20}
    assert len(alimtalk.effects) == 20
    assert open_letters() == 0
    assert list(OperatorAction.objects.order_by("id").values_list("action", "actor", "reason")) == [
        ("redrive.create", "olga", "the provider is mended"),
        ("redrive.start", "olga", ""),
    ]


def test_letters_that_still_fail_stop_no_others() -> None:
    good = dead_letters("monitoring", many_completed([1, 2]))
    bad = dead_letters("monitoring", [message(b"{", topic="order-completed")])
    good += dead_letters("monitoring", many_completed([3]))
    redrive = execute(create())
    assert counts_of_preview(redrive) == redrive.counts == {"applied": 3, "failed": 1}
    (item,) = RedriveItem.objects.filter(result="failed")
    assert item.letter_id == bad[0]
    assert "PoisonMessage" in item.detail
    assert list(DeadLetter.objects.filter(closed_at=None).values_list("id", flat=True)) == bad
    assert OrderMinute.objects.get().completed == 3


def test_the_set_is_frozen_when_the_redrive_is_created() -> None:
    before = dead_letters("monitoring", many_completed([1, 2]))
    redrive = create()
    later = dead_letters("monitoring", many_completed([3]))
    execute(redrive)
    assert set(redrive.items.values_list("letter_id", flat=True)) == set(before)
    assert list(DeadLetter.objects.filter(closed_at=None).values_list("id", flat=True)) == later


def test_a_filter_takes_the_open_letters_that_match_all_of_it() -> None:
    (old,) = dead_letters("monitoring", [completed(1)])
    DeadLetter.objects.filter(pk=old).update(created_at=Now() - timedelta(days=2))
    (closed,) = dead_letters("monitoring", [completed(2)])
    DeadLetter.objects.filter(pk=closed).update(closed_at=Now())
    (wanted,) = dead_letters("monitoring", [completed(3)])
    dead_letters("monitoring", [completed(4)], ValueError("another error"))
    dead_letters("notification", [completed(5)])
    since = DeadLetter.objects.get(pk=wanted).created_at - timedelta(hours=1)
    redrive = create(LetterFilter(topic="order-completed", group="monitoring", error="Refused", since=since))
    assert list(redrive.items.values_list("letter_id", flat=True)) == [wanted]
    assert redrive.histogram == [["Refused", 1]]
    assert redrive.selection == {
        "topic": "order-completed",
        "group": "monitoring",
        "error": "Refused",
        "since": isoformat_z(since),
    }


def test_a_selection_takes_its_open_letters_once_and_none_is_refused() -> None:
    first, second = dead_letters("monitoring", many_completed([1, 2]))
    assert create([second, first, second]).total == 2
    with pytest.raises(RedriveRefused, match="no open dead letter is among the selected"):
        create([second + 1])
    with pytest.raises(RedriveRefused, match="no open dead letter matches"):
        create(LetterFilter(group="ranking"))
    assert Redrive.objects.count() == 1


def test_a_set_is_frozen_in_chunks_and_its_number_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(letter_filter, "CHUNK", 1000)
    insert_letters(2500)
    redrive = create()
    assert redrive.total == RedriveItem.objects.count() == 2500
    assert redrive.histogram == [["E0", 1250], ["E1", 1250]]
    monkeypatch.setattr(letter_filter, "MOST_LETTERS", 2499)
    with pytest.raises(RedriveRefused, match="more than 2499"):
        create()
    assert RedriveItem.objects.count() == 2500


def test_above_a_hundred_letters_the_operator_types_their_number() -> None:
    dead_letters("monitoring", many_completed(range(1, 102)))
    redrive = create()
    step()
    for typed in (None, 100):
        with pytest.raises(RedriveRefused, match="type this number"):
            redrive_start(redrive.pk, actor="olga", typed_count=typed)
    assert redrive_start(redrive.pk, actor="olga", typed_count=101).state == "running"


def test_a_redrive_is_not_started_before_its_preview() -> None:
    dead_letters("monitoring", many_completed([1]))
    redrive = create()
    with pytest.raises(RedriveRefused, match="no preview yet"):
        redrive_start(redrive.pk, actor="olga")


def test_an_old_preview_is_made_again_and_the_redrive_starts_if_it_says_the_same() -> None:
    dead_letters("monitoring", many_completed([1]))
    redrive = create()
    step()
    Redrive.objects.update(previewed_at=Now() - timedelta(seconds=61))
    assert redrive_start(redrive.pk, actor="olga").state == "previewed"
    to_the_end(redrive)
    assert redrive.counts == {"applied": 1}


def test_an_old_preview_that_has_changed_starts_nothing() -> None:
    (letter,) = dead_letters("monitoring", many_completed([1]))
    redrive = create()
    step()
    Redrive.objects.update(previewed_at=Now() - timedelta(seconds=61))
    DeadLetter.objects.filter(pk=letter).update(closed_at=Now())
    redrive_start(redrive.pk, actor="olga")
    step()
    redrive.refresh_from_db()
    assert (redrive.state, redrive.wants_preview) == ("previewed", False)
    assert counts_of_preview(redrive) == {"done_already": 1}


def test_an_action_that_the_state_does_not_allow_is_refused_and_not_recorded() -> None:
    dead_letters("monitoring", many_completed([1]))
    redrive = create()
    recorded = OperatorAction.objects.count()
    for act in (redrive_pause, redrive_resume):
        with pytest.raises(RedriveRefused, match="is preparing cannot be"):
            act(redrive.pk, actor="olga")
    with pytest.raises(RedriveRefused, match="from 1 to 1000"):
        redrive_set_rate(redrive.pk, rate=0, actor="olga")
    with pytest.raises(RedriveRefused, match="no redrive"):
        redrive_cancel(redrive.pk + 1, actor="olga")
    assert OperatorAction.objects.count() == recorded
    execute(redrive)
    for act in (redrive_pause, redrive_resume, redrive_cancel, redrive_start):
        with pytest.raises(RedriveRefused, match="is done cannot be"):
            act(redrive.pk, actor="olga")
    with pytest.raises(RedriveRefused, match="is done cannot be"):
        redrive_preview(redrive.pk, actor="olga", accepts_delay=False)


def test_a_paused_redrive_replays_nothing_until_it_is_resumed_and_a_cancelled_one_never() -> None:
    dead_letters("monitoring", many_completed(range(1, 11)))
    redrive = start(create(rate=5))
    executor = RedriveExecutor()
    step(executor)
    assert 0 < 10 - open_letters() < 10
    redrive_pause(redrive.pk, actor="olga", reason="wait")
    left = open_letters()
    for _ in range(3):
        assert not step(executor)
    assert open_letters() == left
    redrive_resume(redrive.pk, actor="olga", reason="go")
    step(executor)
    assert open_letters() < left
    redrive_cancel(redrive.pk, actor="olga", reason="enough")
    left = open_letters()
    step(executor)
    assert open_letters() == left > 0
    assert RedriveItem.objects.filter(done_at=None).count() == left


def test_the_rate_is_kept() -> None:
    dead_letters("monitoring", many_completed(range(1, 11)))
    redrive = start(create(rate=10))
    began_at = time.monotonic()
    to_the_end(redrive)
    assert 0.8 < time.monotonic() - began_at < 5


def test_of_two_processes_one_has_the_redrive_and_the_other_takes_over_when_its_lease_expires() -> None:
    dead_letters("monitoring", many_completed(range(1, 11)))
    redrive = start(create(rate=2))
    first, second = RedriveExecutor(), RedriveExecutor()
    step(first)
    left = open_letters()
    step(second)
    assert open_letters() == left
    Redrive.objects.update(leased_until=Now(), rate=1000)
    to_the_end(redrive, second)
    assert redrive.counts == {"applied": 10}


def test_two_redrives_of_the_same_letters_at_once_have_each_effect_once() -> None:
    dead_letters("monitoring", many_completed(range(1, 31)))
    redrives = [create(), create()]
    executor = RedriveExecutor()
    while step(executor):
        pass
    for redrive in redrives:
        redrive_start(redrive.pk, actor="olga")
    threads = [
        threading.Thread(target=_execute_only, args=(redrive.pk,), name=f"redrive {redrive.pk}") for redrive in redrives
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counts = [Redrive.objects.get(pk=redrive.pk).counts for redrive in redrives]
    assert sum(count.get("applied", 0) for count in counts) == 30
    assert [sum(count.values()) for count in counts] == [30, 30]
    assert OrderMinute.objects.get().completed == 30


def _execute_only(redrive_id: int) -> None:
    try:
        to_the_end(Redrive.objects.get(pk=redrive_id), RedriveExecutor(only=redrive_id))
    finally:
        connection.close()


def test_a_service_that_is_away_delays_a_redrive_which_then_goes_on(
    closed_provider: Provider, settings: object
) -> None:
    settings.ALIMTALK_URL, settings.ALIMTALK_KEY = closed_provider.url, "the-key"  # type: ignore[attr-defined]
    dead_letters("notification", many_completed(range(1, 6)))
    redrive = start(create())
    executor = RedriveExecutor()
    step(executor)
    redrive.refresh_from_db()
    assert redrive.state == "running"
    assert redrive.waits_for
    assert open_letters() == 5
    closed_provider.up()
    to_the_end(redrive, executor)
    assert (redrive.counts, redrive.waits_for) == ({"applied": 5}, "")
    assert len(closed_provider.effects) == 5


def test_a_call_that_the_provider_postpones_delays_its_own_letter_only(alimtalk: Provider) -> None:
    first, *_ = messages = many_completed(range(1, 6))
    dead_letters("notification", messages)

    def answer(call: Call) -> int | tuple[int, dict[str, str]]:
        is_throttled = call.key == str(first.event_id) and alimtalk.tries(first.event_id) == 1
        return (429, {"Retry-After": "1"}) if is_throttled else 200

    alimtalk.answer = answer
    redrive = execute(create())
    assert redrive.counts == {"applied": 5}
    assert len(alimtalk.effects) == 5


def test_previews_are_made_one_after_the_other_while_running_redrives_go_on() -> None:
    dead_letters("monitoring", many_completed([1, 2, 3]))
    running = start(create(rate=1))
    wanted = [create().pk for _ in range(3)]
    executor, previewed = RedriveExecutor(), []
    for _ in wanted:
        step(executor)
        previewed.append(Redrive.objects.filter(pk__in=wanted, wants_preview=False).count())
        running.refresh_from_db()
        assert running.counts["applied"] >= 1
    assert previewed == [1, 2, 3]


@pytest.mark.parametrize("sqlstate", ["40P01", "40001"])
def test_a_replay_that_gives_way_to_another_session_is_repeated(sqlstate: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgreSQL aborts one transaction of a deadlock: neither an outage nor a failed replay."""
    (letter,) = dead_letters("monitoring", many_completed([1]))
    is_busy = True

    def conflict(values: Any) -> None:
        if is_busy:
            with connection.cursor() as cursor:
                cursor.execute(f"DO $$ BEGIN RAISE 'it gave way' USING ERRCODE = '{sqlstate}'; END $$")

    faulty("monitoring", conflict, monkeypatch)
    redrive = create()
    executor = RedriveExecutor()
    step(executor)
    assert counts_of_preview(redrive) == {"not_previewed": 1}
    redrive_start(redrive.pk, actor="olga")
    step(executor)
    redrive.refresh_from_db()
    assert "it gave way" in redrive.waits_for
    assert (redrive.counts, DeadLetter.objects.get(pk=letter).replays) == ({}, 0)
    is_busy = False
    assert to_the_end(redrive, executor).counts == {"applied": 1}


def test_a_letter_that_can_be_replayed_only_later_is_tried_after_growing_pauses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (letter,) = dead_letters("monitoring", many_completed([1]))
    is_early = True

    def replay(replayed: ReplayedMessage) -> str:
        if is_early:
            raise ReplayPostponed("no unit is free", 5.0)
        return "handled: at last"

    changed(dataclasses.replace(groups()["monitoring"], replay=replay), monkeypatch)
    redrive, executor = start(create()), RedriveExecutor()
    pauses = []
    for _ in range(9):
        RedriveItem.objects.update(due_at=Now())
        step(executor)
        assert not step(executor)
        pauses.append((RedriveItem.objects.get().due_at - database_time()).total_seconds())
    assert pauses == pytest.approx([5, 10, 20, 40, 80, 160, 300, 300, 300], abs=3)
    redrive.refresh_from_db()
    assert redrive.waits_for == f"letter {letter}: no unit is free"
    assert (redrive.counts, DeadLetter.objects.get().replays) == ({}, 0)
    is_early = False
    RedriveItem.objects.update(due_at=Now())
    to_the_end(redrive, executor)
    assert (redrive.counts, redrive.waits_for) == ({"applied": 1}, "")


# A redrive that is broken


def two_started() -> tuple[Redrive, Redrive]:
    """Two redrives of two letters each: the first is to be broken."""
    ids = dead_letters("monitoring", many_completed([1, 2, 3, 4]))
    first, second = create(ids[:2]), create(ids[2:])
    step(executor := RedriveExecutor())
    step(executor)
    for redrive in (first, second):
        redrive_start(redrive.pk, actor="olga")
    return first, second


def test_a_redrive_whose_counts_cannot_be_read_pauses_itself_alone_before_it_replays_a_letter(
    caplog: pytest.LogCaptureFixture,
) -> None:
    first, second = two_started()
    junk: tuple[object, ...] = ({"failed": "x"}, [], "x", {"failed": -1}, {"failed": 1.5})
    for counts in junk:
        Redrive.objects.filter(pk=first.pk).update(counts=counts, state="running", waits_for="")
        caplog.clear()
        step()
        first.refresh_from_db()
        assert first.state == "paused"
        assert first.waits_for.startswith("stopped by an error: ValueError: its counts are not numbers by result")
        assert f"redrive {first.pk} is paused by an error" in caplog.text
        assert not first.items.exclude(done_at=None).exists()
    assert to_the_end(second).counts == {"applied": 2}
    Redrive.objects.filter(pk=first.pk).update(counts={})
    first = redrive_resume(first.pk, actor="olga", reason="its counts are mended")
    assert first.waits_for == ""
    assert to_the_end(first).counts == {"applied": 2}


def test_an_unforeseen_error_of_a_redrive_pauses_it_and_no_other_even_if_it_cannot_be_paused_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = two_started()
    due, pause, executor = RedriveExecutor._due, executor_module._pause, RedriveExecutor()
    tries = 0

    def fail(self: RedriveExecutor, redrive_id: int) -> list[tuple[int, int]]:
        nonlocal tries
        if redrive_id == first.pk:
            tries += 1
            raise LookupError("a fault of ours")
        return due(self, redrive_id)

    def not_paused(redrive_id: int, fault: str) -> bool:
        raise LookupError("another fault")

    monkeypatch.setattr(RedriveExecutor, "_due", fail)
    monkeypatch.setattr(executor_module, "_pause", not_paused)
    assert to_the_end(second, executor).counts == {"applied": 2}
    assert tries == 1
    monkeypatch.setattr(executor_module, "_pause", pause)
    step(executor)
    first.refresh_from_db()
    assert (first.state, first.waits_for, tries) == ("paused", "stopped by an error: LookupError: a fault of ours", 1)


def test_a_letter_whose_result_cannot_be_written_is_replayed_once(alimtalk: Provider) -> None:
    (letter,) = dead_letters("notification", many_completed([1]))
    redrive = start(create())

    def answer(call: Call) -> int:
        with connection.cursor() as cursor:
            cursor.execute("""UPDATE kafka_bridge_redrive SET counts = '{"applied": "x"}'""")
        return 200

    alimtalk.answer = answer
    executor = RedriveExecutor()
    for _ in range(3):
        step(executor)
    redrive.refresh_from_db()
    assert redrive.state == "paused"
    assert (len(alimtalk.calls), DeadLetter.objects.get(pk=letter).closed_at is None) == (1, False)
    Redrive.objects.update(counts={})
    assert to_the_end(redrive_resume(redrive.pk, actor="olga"), executor).counts == {"done_already": 1}
    assert len(alimtalk.calls) == 1


# A redrive whose row is locked

ROW = "SELECT FROM kafka_bridge_redrive WHERE id = %s FOR UPDATE"


def test_a_redrive_whose_row_is_locked_waits_alone() -> None:
    first, second = two_started()
    executor = RedriveExecutor()
    with lock(ROW, first.pk):
        began_at = time.monotonic()
        assert to_the_end(second, executor).counts == {"applied": 2}
        step(executor)
        executor.release_if_possible()
        assert time.monotonic() - began_at < 5
        first.refresh_from_db()
        assert (first.state, first.counts) == ("running", {})
    assert to_the_end(first, executor).counts == {"applied": 2}


def test_a_row_that_is_locked_before_the_end_or_the_preview_delays_no_other() -> None:
    first, second = two_started()
    RedriveItem.objects.filter(redrive=first).update(done_at=Now())
    third, fourth = create(), create()
    executor = RedriveExecutor()
    # Its lease is new, so that it is not asked for again.
    step(executor)
    Redrive.objects.filter(pk=first.pk).update(state="running", wants_preview=False)
    Redrive.objects.filter(pk__in=[third.pk, fourth.pk]).update(wants_preview=True)
    with lock(ROW, first.pk), lock(ROW, third.pk):
        began_at = time.monotonic()
        for _ in range(3):
            step(executor)
        assert time.monotonic() - began_at < 5
        assert list(Redrive.objects.filter(wants_preview=True)) == [third]
        assert to_the_end(second, executor).state == "done"
    assert to_the_end(first, executor).state == "done"


@pytest.mark.parametrize("answer", [200, 400])
def test_the_outcome_of_a_call_during_which_the_row_is_locked_is_kept_and_written_later(
    alimtalk: Provider, answer: int
) -> None:
    dead_letters("notification", many_completed([1]))
    dead_letters("monitoring", many_completed([2, 3]))
    first, second = create(LetterFilter(group="notification")), create(LetterFilter(group="monitoring"))
    step(executor := RedriveExecutor())
    step(executor)
    for redrive in (first, second):
        redrive_start(redrive.pk, actor="olga")
    held: list[OpenTransaction] = []

    def hold(call: Call) -> int:
        held.append(lock(ROW, first.pk))
        held[0].__enter__()
        return answer

    alimtalk.answer = hold
    began_at = time.monotonic()
    assert to_the_end(second, executor).counts == {"applied": 2}
    step(executor)
    assert time.monotonic() - began_at < 5
    first.refresh_from_db()
    assert (len(alimtalk.calls), first.counts) == (1, {})
    held[0].__exit__(None, None, None)
    assert to_the_end(first, executor).counts == {"applied" if answer == 200 else "failed": 1}
    assert len(alimtalk.calls) == 1
    letter = DeadLetter.objects.get(consumer_group="notification")
    assert (letter.replays, letter.closed_at is None) == (1, answer == 400)


def test_a_letter_that_is_postponed_while_the_row_is_locked_delays_no_other_redrive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dead_letters("monitoring", many_completed([1]))
    dead_letters("data-platform", many_completed([2]))
    first, second = create(LetterFilter(group="monitoring")), create(LetterFilter(group="data-platform"))
    held: list[OpenTransaction] = []

    def replay(replayed: ReplayedMessage) -> str:
        if not held:
            held.append(lock(ROW, first.pk))
            held[0].__enter__()
        raise ReplayPostponed("no unit is free", 5.0)

    step(executor := RedriveExecutor())
    step(executor)
    for redrive in (first, second):
        redrive_start(redrive.pk, actor="olga")
    for name in ("monitoring", "data-platform"):
        changed(dataclasses.replace(groups()[name], replay=replay, call=None), monkeypatch)
    began_at = time.monotonic()
    for _ in range(3):
        step(executor)
    assert time.monotonic() - began_at < 5
    assert [redrive.waits_for != "" for redrive in Redrive.objects.order_by("id")] == [False, True]
    held[0].__exit__(None, None, None)


@pytest.mark.parametrize("rate", [0, 1001])
def test_a_rate_out_of_range_is_not_stored(rate: int) -> None:
    dead_letters("monitoring", many_completed([1]))
    create()
    with pytest.raises(IntegrityError, match="redrive_rate_in_range"):
        Redrive.objects.update(rate=rate)


def test_letters_that_wait_are_not_read_to_find_those_that_are_due() -> None:
    insert_letters(3000)
    redrive = start(create())
    last = RedriveItem.objects.latest("id").pk
    RedriveItem.objects.exclude(pk=last).update(due_at=Now() + timedelta(hours=1))
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE kafka_bridge_redriveitem")
    statements = [text for text in queries_of(step) if "due_at <=" in text]
    assert RedriveItem.objects.get(pk=last).result == "failed"
    (read,) = reads_of(statements, {"kafka_bridge_redriveitem"})
    assert read.node.startswith("Index")
    assert read.rows <= 1
    assert redrive.total == 3000


def test_the_thread_of_the_housekeeper_obeys_a_pause_within_two_seconds_and_ends_with_it() -> None:
    dead_letters("monitoring", many_completed(range(1, 101)))
    redrive = start(create(rate=20))
    stop = StopFlag()
    thread = RedriveThread(stop)
    thread.start()
    wait_until(lambda: open_letters() < 95, MOMENT_SECONDS, "no letter is replayed", 0.01)
    redrive_pause(redrive.pk, actor="olga")
    time.sleep(2)
    left = open_letters()
    time.sleep(1)
    assert open_letters() == left > 0
    stop.request()
    thread.end()
    assert not thread.is_alive()
    redrive.refresh_from_db()
    assert redrive.lease_owner is None


def test_the_letters_name_their_error() -> None:
    dead_letters("monitoring", many_completed([1, 2]))
    dead_letters("monitoring", many_completed([3]), Refused("again"))
    assert create().histogram == [["Refused", 3]]
