"""The command replay_dead_letters is a redrive that needs no housekeeper."""

from __future__ import annotations

from io import StringIO

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError

from kafka_bridge.models import DeadLetter, OperatorAction, Redrive
from kafka_bridge.redriving.executor import RedriveExecutor
from orders.models import OrderMinute
from tests.effects.cast import completed, many_completed
from tests.redriving.letters import Refused, dead_letters
from tests.support.messages import message

pytestmark = pytest.mark.django_db(transaction=True)


def replay(*options: str) -> str:
    out = StringIO()
    call_command("replay_dead_letters", *options, stdout=out)
    return out.getvalue()


def test_it_replays_the_letters_that_match_and_shows_preview_and_results() -> None:
    dead_letters("monitoring", many_completed([1, 2]))
    (other,) = dead_letters("monitoring", [completed(3)], ValueError("another error"))
    out = replay("--group", "monitoring", "--error", "Refused", "--rate", "100", "--reason", "mended")
    assert "preview of 2 letters: 2 applied" in out
    assert "2 of 2: 2 applied" in out
    assert list(DeadLetter.objects.filter(closed_at=None).values_list("id", flat=True)) == [other]
    redrive = Redrive.objects.get()
    assert (redrive.state, redrive.reason, redrive.rate) == ("done", "mended", 100)
    assert redrive.actor.endswith("at the shell")
    assert set(OperatorAction.objects.values_list("reason", flat=True)) == {"mended"}


def test_a_dry_run_prints_the_preview_and_replays_nothing() -> None:
    dead_letters("monitoring", many_completed([1, 2]))
    assert "preview of 2 letters: 2 applied" in replay("--dry-run")
    assert DeadLetter.objects.filter(closed_at=None).count() == 2
    assert not OrderMinute.objects.exists()
    assert Redrive.objects.get().state == "cancelled"


def test_letters_that_still_fail_are_named_and_the_command_fails() -> None:
    dead_letters("monitoring", many_completed([1]))
    (bad,) = dead_letters("monitoring", [message(b"{", topic="order-completed")], Refused("bad"))
    out = StringIO()
    with pytest.raises(CommandError, match="1 letters are not replayed"):
        call_command("replay_dead_letters", stdout=out)
    assert f"failed: letter {bad}: PoisonMessage" in out.getvalue()
    assert "1 applied, 1 failed" in out.getvalue()


def test_a_redrive_that_an_error_stopped_ends_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    dead_letters("monitoring", many_completed([1]))

    def fail(self: RedriveExecutor, redrive_id: int) -> list[tuple[int, int]]:
        raise LookupError("a fault of ours")

    monkeypatch.setattr(RedriveExecutor, "_due", fail)
    with pytest.raises(CommandError, match="was stopped by an error: LookupError: a fault of ours; mend it"):
        replay()
    assert Redrive.objects.get().state == "paused"


def test_without_a_letter_there_is_nothing_to_do() -> None:
    assert "no open dead letter matches" in replay("--topic", "order-completed")
    assert not Redrive.objects.exists()
    assert not OperatorAction.objects.exists()


@pytest.mark.parametrize(
    ("option", "name", "known"), [("--group", "notificatoin", "notification"), ("--topic", "orders", "order-completed")]
)
def test_a_misspelt_name_is_no_success(option: str, name: str, known: str) -> None:
    with pytest.raises(CommandError, match=f"there is no {option[2:]} '{name}'; known: .*{known}"):
        replay(option, name)


def test_letters_of_a_group_that_is_not_known_any_more_are_found_by_its_name() -> None:
    dead_letters("gone", many_completed([1]))
    with pytest.raises(CommandError, match="1 letters are not replayed"):
        replay("--group", "gone")
