"""A letter of a group that calls out: the call is made once at the provider, the effect follows in one transaction."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from django.db import transaction
from django.db.models.functions import Now

from common.processes.lifecycle import StopFlag
from common.throttling import CallPostponed
from devstack.processes import wait_until
from kafka_bridge.errors import ReplayPostponed
from kafka_bridge.models import DeadLetter, ProcessedEvent
from kafka_bridge.redriving import replay
from kafka_bridge.redriving.replay import ReplayInterrupted, ReplayResult, replay_in_transaction, replay_letter
from kafka_bridge.redriving.stored_messages import letter_message
from tests.effects.cast import completed
from tests.redriving.cast import letter_of
from tests.support.provider import HANG, Provider
from tests.support.service import environment
from tests.support.threads import in_another_session

pytestmark = pytest.mark.django_db(transaction=True)

_REPLAY = """
import django; django.setup()
from common.processes.lifecycle import StopFlag
from kafka_bridge.redriving.replay import replay_letter
replay_letter({}, StopFlag())
"""


@pytest.fixture
def letter() -> DeadLetter:
    """The letter of a notice that the provider refused."""
    return letter_of("notification", completed(1))


def replayed(letter: DeadLetter, stop: StopFlag | None = None) -> ReplayResult:
    return replay_letter(letter.pk, stop or StopFlag()).result


def handled(letter: DeadLetter) -> bool:
    return ProcessedEvent.objects.filter(
        consumer_group="notification", event_id=letter_message(letter).inbox_id
    ).exists()


def state(letter: DeadLetter) -> tuple[str, int]:
    letter.refresh_from_db()
    return letter.state, letter.replays


def test_the_call_is_made_under_the_event_id(letter: DeadLetter, alimtalk: Provider) -> None:
    assert (replayed(letter), replayed(letter)) == (ReplayResult.APPLIED, ReplayResult.DONE_ALREADY)
    assert [call.key for call in alimtalk.calls] == [str(letter.event_id)]
    assert (state(letter), handled(letter)) == (("replayed", 1), True)


def test_a_refused_call_is_a_failed_replay(letter: DeadLetter, alimtalk: Provider) -> None:
    alimtalk.answer = lambda call: 422
    assert (replayed(letter), state(letter), handled(letter)) == (ReplayResult.FAILED, ("open", 1), False)
    alimtalk.answer = lambda call: 200
    assert (replayed(letter), handled(letter)) == (ReplayResult.APPLIED, True)


def test_an_event_that_was_handled_since_is_not_called(letter: DeadLetter, alimtalk: Provider) -> None:
    ProcessedEvent.objects.create(consumer_group="notification", event_id=letter_message(letter).inbox_id)
    assert (replayed(letter), state(letter), alimtalk.calls) == (ReplayResult.DONE_ALREADY, ("replayed", 1), [])


def test_a_provider_that_is_down_or_throttles_fails_no_replay(letter: DeadLetter, alimtalk: Provider) -> None:
    alimtalk.answer = lambda call: 500
    with pytest.raises(Exception, match="nothing gets through to AlimTalk"):
        replayed(letter)
    alimtalk.answer = lambda call: (429, {"Retry-After": "7"})
    with pytest.raises(CallPostponed) as postponed:
        replayed(letter)
    assert 6 < postponed.value.seconds < 8
    assert (state(letter), handled(letter)) == (("open", 0), False)


def test_a_process_that_stops_during_the_call_leaves_the_letter_open(letter: DeadLetter, alimtalk: Provider) -> None:
    stop = StopFlag()
    stop.request()
    with pytest.raises(ReplayInterrupted):
        replayed(letter, stop)
    assert state(letter) == ("open", 0)
    assert replayed(letter) == ReplayResult.APPLIED


def test_two_replays_at_once_make_one_call(letter: DeadLetter, alimtalk: Provider) -> None:
    alimtalk.answer = lambda call: HANG if call.number == 1 else 200
    first = in_another_session(lambda: replayed(letter))
    wait_until(lambda: bool(alimtalk.calls), 10, "the first replay makes no call")
    with pytest.raises(ReplayPostponed) as postponed:
        replayed(letter)
    assert 0 < postponed.value.seconds < 60
    assert len(alimtalk.calls) == 1
    alimtalk.release()
    assert first.result(20) == ReplayResult.APPLIED
    assert len(alimtalk.effects) == 1


def test_without_the_lease_both_would_call(
    letter: DeadLetter, alimtalk: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "_LEASE", replay._LEASE.replace("leased_until IS NULL", "true"))
    alimtalk.answer = lambda call: HANG if call.number == 1 else 200
    first = in_another_session(lambda: replayed(letter))
    wait_until(lambda: bool(alimtalk.calls), 10, "the first replay makes no call")
    assert replayed(letter) == ReplayResult.APPLIED
    alimtalk.release()
    assert first.result(20) == ReplayResult.DONE_ALREADY
    assert (alimtalk.tries(letter.event_id), len(alimtalk.effects)) == (3, 1)


def test_a_process_killed_during_the_call_has_its_effect_once(
    letter: DeadLetter, alimtalk: Provider, tmp_path: Path
) -> None:
    alimtalk.answer = lambda call: HANG
    env = environment(
        ALIMTALK_URL=alimtalk.url, DJANGO_SETTINGS_MODULE="couponsite.settings", HTTP_TIMEOUT_SECONDS="20"
    )
    process = subprocess.Popen([sys.executable, "-c", _REPLAY.format(letter.pk)], env={**os.environ, **env})
    try:
        wait_until(lambda: bool(alimtalk.calls), 30, "the process makes no call")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    assert (state(letter), handled(letter)) == (("open", 0), False)
    alimtalk.answer = lambda call: 200
    with pytest.raises(ReplayPostponed):
        replayed(letter)
    # The lease of the killed process expires.
    DeadLetter.objects.update(leased_until=Now())
    assert (replayed(letter), state(letter), handled(letter)) == (ReplayResult.APPLIED, ("replayed", 1), True)
    assert (alimtalk.tries(letter.event_id), list(alimtalk.effects)) == (2, [str(letter.event_id)])


def test_a_preview_calls_nothing_and_says_what_would_be_sent(letter: DeadLetter, alimtalk: Provider) -> None:
    with transaction.atomic():
        result, detail = replay_in_transaction(letter)[1:]
        transaction.set_rollback(True)
    assert result == ReplayResult.APPLIED
    assert detail == f"sent: ORDER_COMPLETED to user 7001 by AlimTalk, key {letter.event_id}"
    assert (alimtalk.calls, handled(letter)) == ([], False)
