"""Redrives executed by the housekeeper: it is killed twice, and each effect happens once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from django.db.models.functions import Now

from coupons.invariants import violations
from coupons.models import Coupon, IssueRequest, UserCoupon
from devstack import wait_until
from kafka_bridge.models import DeadLetter, Redrive, RedriveItem
from kafka_bridge.redriving import preview
from kafka_bridge.redriving.letter_filter import LetterFilter
from kafka_bridge.redriving.redrives import redrive_start
from tests.effects.cast import many_completed
from tests.redriving.letters import counts_of_preview, create, dead_letters, step
from tests.support.factories import CouponFactory
from tests.support.messages import requests
from tests.support.provider import Provider
from tests.support.service import Service, environment

pytestmark = pytest.mark.django_db(transaction=True)

# As many as a preview looks at, and more than the hundred from which on their number is typed.
CALLS = 500
REQUESTS = 120
MOMENT_SECONDS = 300.0


@pytest.fixture
def service(transactional_db: None, topics: str, alimtalk: Provider, tmp_path: Path) -> Iterator[Service]:
    """Processes that call ``alimtalk``."""
    service = Service(tmp_path, environment(ALIMTALK_URL=alimtalk.url, ALIMTALK_KEY="the-key"))
    yield service
    service.end()


@pytest.fixture(autouse=True)
def _unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may not get through 500 letters in two seconds."""
    monkeypatch.setattr(preview, "PREVIEW_SECONDS", 60.0)


def open_letters(group: str) -> int:
    return DeadLetter.objects.filter(closed_at=None, consumer_group=group).count()


def _at_most(group: str, left: int) -> bool:
    return open_letters(group) <= left


def redrives_of(group: str, letters: int, *, rate: int) -> list[Redrive]:
    """Two operators create a redrive of all letters of a group, and see that all of them would be applied."""
    redrives = [create(LetterFilter(group=group), rate=rate) for _ in range(2)]
    for _ in redrives:
        step()
    assert [counts_of_preview(redrive) for redrive in redrives] == [{"applied": letters}] * 2
    return redrives


def execute_and_kill_twice(service: Service, redrives: list[Redrive]) -> None:
    """Execute the redrives at once; the process is killed in a replay of each group, with letters of both left."""
    for redrive in redrives:
        redrive_start(redrive.pk, actor="olga", typed_count=redrive.total)
    housekeeper = service.start("housekeeper")
    for group, left in (("notification", CALLS - 20), ("issue", REQUESTS - 20)):
        wait_until(partial(_at_most, group, left), MOMENT_SECONDS, f"more than {left} of {group} are open", 0.01)
        housekeeper.kill()
        assert open_letters("notification") > 0
        assert open_letters("issue") > 0
        # Their leases expire.
        Redrive.objects.update(leased_until=Now())
        DeadLetter.objects.filter(closed_at=None).update(leased_until=Now())
        housekeeper.start()
    wait_until(lambda: not Redrive.objects.exclude(state="done").exists(), MOMENT_SECONDS, "they do not end", 0.05)
    assert housekeeper.stop(15) == 0
    for redrive in redrives:
        redrive.refresh_from_db()


def assert_each_was_applied_once(redrives: list[Redrive], letters: int) -> None:
    results = RedriveItem.objects.filter(redrive__in=redrives, result="applied").values_list("letter_id", flat=True)
    assert len(results) == len(set(results)) == letters
    assert [sum(redrive.counts.values()) for redrive in redrives] == [letters] * 2
    # Each preview said that all would be applied: together they were.
    totals = sum((Counter(redrive.counts) for redrive in redrives), Counter())
    assert totals == {"applied": letters, "done_already": letters}


def test_two_redrives_at_once_have_each_effect_once_although_the_process_is_killed_twice(
    service: Service, alimtalk: Provider
) -> None:
    """Of calls that the provider refused, and of requests of a mended fault with their coupon paused."""
    messages = many_completed(range(1, CALLS + 1))
    dead_letters("notification", messages)
    coupon: Coupon = CouponFactory.create(total_quantity=REQUESTS, paused=True)
    dead_letters("issue", requests(coupon, list(range(1, REQUESTS + 1))), ended=True)
    calls = redrives_of("notification", CALLS, rate=1000)
    # Not so fast that all of them are issued before the process is killed.
    issues = redrives_of("issue", REQUESTS, rate=100)
    execute_and_kill_twice(service, [*calls, *issues])
    assert_each_was_applied_once(calls, CALLS)
    assert_each_was_applied_once(issues, REQUESTS)
    assert not DeadLetter.objects.filter(closed_at=None).exists()
    # The provider counts a repeated call under its key once.
    assert set(alimtalk.effects) == {str(message.event_id) for message in messages}
    assert len(alimtalk.calls) <= CALLS + 4
    assert [redrive.preview and redrive.preview["kinds"] for redrive in calls] == [{"sent": CALLS}] * 2
    assert [redrive.preview and redrive.preview["kinds"] for redrive in issues] == [{"SUCCESS": REQUESTS}] * 2
    assert UserCoupon.objects.filter(coupon=coupon).count() == REQUESTS
    assert IssueRequest.objects.filter(status="SUCCESS").count() == REQUESTS
    assert IssueRequest.objects.filter(status="FAILED", reason="ERROR").count() == REQUESTS
    assert {name: lines for name, lines in violations() if lines} == {}
