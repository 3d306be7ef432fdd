"""A redrive replays a frozen set of dead letters, as its preview said."""

from __future__ import annotations

import pytest

from common.processes.lifecycle import StopFlag
from kafka_bridge.models import DeadLetter, OperatorAction, Redrive
from kafka_bridge.redriving.executor import RedriveExecutor
from kafka_bridge.redriving.letter_filter import LetterFilter
from kafka_bridge.redriving.redrives import (
    ENDED,
    RedriveRefused,
    redrive_cancel,
    redrive_create,
    redrive_pause,
    redrive_resume,
    redrive_set_rate,
    redrive_start,
)
from tests.effects.cast import many_completed
from tests.redriving.letters import dead_letters
from tests.support.provider import Provider

pytestmark = pytest.mark.django_db(transaction=True)


def create(**changes: object) -> Redrive:
    values = {"name": "fixed", "reason": "the provider is mended", "actor": "olga", "letters": LetterFilter()}
    return redrive_create(**{**values, "rate": 1000, **changes})


def execute(redrive: Redrive) -> Redrive:
    """Preview, start and execute a redrive to its end."""
    executor = RedriveExecutor()
    executor.step(StopFlag())
    redrive = redrive_start(redrive.pk, actor="olga", typed_count=redrive.total)
    while redrive.state not in ENDED:
        executor.step(StopFlag())
        redrive.refresh_from_db()
    return redrive


def test_what_the_preview_says_is_what_happens(alimtalk: Provider) -> None:
    dead_letters("notification", many_completed(range(1, 21)))
    redrive = execute(create())
    assert redrive.preview["counts"] == redrive.counts == {"applied": 20}
    assert len(alimtalk.effects) == 20
    assert not DeadLetter.objects.filter(closed_at=None).exists()
    assert list(OperatorAction.objects.order_by("id").values_list("action", flat=True)) == [
        "redrive.create",
        "redrive.start",
    ]
