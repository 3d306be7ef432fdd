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
from kafka_bridge.redriving.redrives import redrive_start
from tests.effects.cast import many_completed
from tests.redriving.letters import counts_of_preview, create, dead_letters, step
from tests.support.factories import CouponFactory
from tests.support.messages import requests
from tests.support.provider import Provider
from tests.support.service import Service, environment

pytestmark = pytest.mark.django_db(transaction=True)

# More than the hundred from which on their number is typed.
LETTERS = 120
MOMENT_SECONDS = 120.0


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


def open_letters() -> int:
    return DeadLetter.objects.filter(closed_at=None).count()


def _at_most(left: int) -> bool:
    return open_letters() <= left


def execute_and_kill_twice(service: Service) -> list[Redrive]:
    """Two operators redrive all letters at once, while the executing process is killed twice."""
    redrives = [create(), create()]
    step()
    assert [counts_of_preview(redrive) for redrive in redrives] == [{"applied": LETTERS}] * 2
    for redrive in redrives:
        redrive_start(redrive.pk, actor="olga", typed_count=LETTERS)
    housekeeper = service.start("housekeeper")
    for left in (90, 45):
        wait_until(partial(_at_most, left), MOMENT_SECONDS, f"more than {left} are open", 0.01)
        housekeeper.kill()
        # Their leases expire.
        Redrive.objects.update(leased_until=Now())
        DeadLetter.objects.filter(closed_at=None).update(leased_until=Now())
        housekeeper.start()
    wait_until(lambda: not Redrive.objects.exclude(state="done").exists(), MOMENT_SECONDS, "they do not end", 0.05)
    assert housekeeper.stop(15) == 0
    return list(Redrive.objects.order_by("id"))


def assert_each_was_applied_once(redrives: list[Redrive]) -> None:
    results = Counter(RedriveItem.objects.values_list("letter_id", "result"))
    applied = {letter for letter, result in results if result == "applied"}
    assert len(applied) == sum(number for (_, result), number in results.items() if result == "applied") == LETTERS
    assert [sum(redrive.counts.values()) for redrive in redrives] == [LETTERS] * 2
    # Each preview said that all would be applied: together they were.
    totals = sum((Counter(redrive.counts) for redrive in redrives), Counter())
    assert totals == {"applied": LETTERS, "done_already": LETTERS}


def test_refused_calls_are_made_once_each_although_the_process_is_killed_twice(
    service: Service, alimtalk: Provider
) -> None:
    messages = many_completed(range(1, LETTERS + 1))
    dead_letters("notification", messages)
    assert_each_was_applied_once(execute_and_kill_twice(service))
    assert open_letters() == 0
    # The provider counts a repeated call under its key once.
    assert set(alimtalk.effects) == {str(message.event_id) for message in messages}
    assert len(alimtalk.calls) <= LETTERS + 4


def test_requests_of_a_mended_fault_are_issued_once_each_with_the_coupon_paused(service: Service) -> None:
    coupon: Coupon = CouponFactory.create(total_quantity=LETTERS, paused=True)
    dead_letters("issue", requests(coupon, list(range(1, LETTERS + 1))), ended=True)
    redrives = execute_and_kill_twice(service)
    assert_each_was_applied_once(redrives)
    assert {str(redrive.preview and redrive.preview["kinds"]) for redrive in redrives} == {str({"SUCCESS": LETTERS})}
    assert UserCoupon.objects.filter(coupon=coupon).count() == LETTERS
    assert IssueRequest.objects.filter(status="SUCCESS").count() == LETTERS
    assert IssueRequest.objects.filter(status="FAILED", reason="ERROR").count() == LETTERS
    assert {name: lines for name, lines in violations() if lines} == {}
