"""An effect whose group's offsets have passed events that it never had gets them from the reconciler."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pytest_django import Settings

from common.processes.lifecycle import StopFlag
from coupons.reconciliation.findings import EFFECT_MISSED, Findings
from kafka_bridge.consuming.consumer import GroupConsumer
from kafka_bridge.models import OutboxMessage, ProcessedEvent
from kafka_bridge.subscriptions import subscriptions
from orders.models import Product
from orders.reconciliation import EffectsCheck
from orders.services.paying import order_pay
from orders.services.placing import OrderItemInput, order_create
from tests.support.kafka import read_to_end, relay_everything

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("topics", "redis_flushed")]

SHARED = "order-consumer-group"
EFFECTS = ("notification", "data-platform", "monitoring")


@pytest.fixture
def pay() -> Callable[[int], None]:
    """Pays a number of orders, and publishes their events."""
    tea = Product.objects.create(name="tea", price=1000)

    def pay_orders(number: int) -> None:
        for _ in range(number):
            order = order_create(user_id=7, items=[OrderItemInput(tea.id, 1)])
            order_pay(order_id=order.order_id, user_id=7)
        relay_everything()

    return pay_orders


def consume(*names: str) -> None:
    """Run the subscriptions of these effects until they have nothing left to read."""
    for subscription in subscriptions(names):
        GroupConsumer(*subscription.groups).run(StopFlag(), until_idle=True)


def known(effect: str) -> int:
    return ProcessedEvent.objects.filter(consumer_group=effect).count()


def compare(check: EffectsCheck, *, repair: bool = True) -> int:
    findings = Findings()
    check.check(findings, StopFlag(), repair=repair)
    return findings.counts.get(EFFECT_MISSED, 0)


@pytest.fixture
def own_ids(settings: Settings) -> dict[str, str]:
    """Only these three effects have work: the ranking has read its topics, too."""
    ids: dict[str, str] = settings.KAFKA_GROUPS
    return ids


def test_an_effect_that_returns_to_an_id_which_went_on_without_it_gets_what_it_missed(
    pay: Callable[[int], None], own_ids: dict[str, str], settings: Settings
) -> None:
    check = EffectsCheck(patience=0)
    settings.KAFKA_GROUPS = together = own_ids | dict.fromkeys(EFFECTS, SHARED)
    pay(2)
    consume("notification", "ranking")
    assert compare(check) == 0
    # Its consumer is down meanwhile.
    settings.KAFKA_GROUPS = own_ids | dict.fromkeys(EFFECTS[:2], SHARED)
    pay(3)
    consume("notification", "ranking")
    assert compare(check) == 0
    settings.KAFKA_GROUPS = together
    pay(1)
    consume("notification", "ranking")
    assert (known("notification"), known("monitoring")) == (6, 3)
    assert compare(check, repair=False) == 3
    assert compare(check) == 3
    # Until it has them they are neither found nor sent once more.
    assert compare(check) == 0
    relay_everything()
    consume("notification", "ranking")
    assert [known(effect) for effect in EFFECTS] == [6, 6, 6]
    assert compare(check) == 0
    assert len(read_to_end("order-completed")) == 6 + 3


def test_an_event_that_no_process_gives_to_the_effect_is_sent_again_once_and_stays_found(
    pay: Callable[[int], None], settings: Settings, own_ids: dict[str, str]
) -> None:
    settings.KAFKA_GROUPS = own_ids | dict.fromkeys(EFFECTS, SHARED)
    pay(1)
    settings.KAFKA_GROUPS = own_ids | dict.fromkeys(EFFECTS[:2], SHARED)
    consume("notification", "ranking")
    settings.KAFKA_GROUPS = own_ids | dict.fromkeys(EFFECTS, SHARED)
    check = EffectsCheck(patience=0)
    for _ in range(2):
        assert compare(check) == 1
        settings.KAFKA_GROUPS = own_ids | dict.fromkeys(EFFECTS[:2], SHARED)
        relay_everything()
        consume("notification", "ranking")
        settings.KAFKA_GROUPS = own_ids | dict.fromkeys(EFFECTS, SHARED)
    assert len(read_to_end("order-completed")) == 2


def test_an_effect_that_is_behind_misses_nothing(pay: Callable[[int], None]) -> None:
    pay(2)
    assert compare(EffectsCheck(patience=0)) == 0
    consume("notification")
    OutboxMessage.objects.all().delete()
    assert compare(EffectsCheck(patience=0)) == 0
