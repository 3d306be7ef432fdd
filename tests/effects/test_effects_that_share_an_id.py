"""Effects whose ids in KAFKA_GROUPS are equal are one subscription: one set of offsets, and all else is each effect's.

The effects of an order are those of the project, on real topics; AlimTalk and the data platform are one server.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial

import pytest
from django.db.models import Sum
from prometheus_client import REGISTRY
from pytest_django import Settings

from common.processes.lifecycle import StopFlag
from coupons.consumer_groups import ISSUE
from devstack import wait_until
from kafka_bridge.client import group_lag
from kafka_bridge.consuming import retrying_partitions
from kafka_bridge.consuming.consumer import GroupConsumer
from kafka_bridge.models import Alert, DeadLetter, GroupPause, PartitionInstruction, ProcessedEvent
from kafka_bridge.operating.group_pauses import PauseTarget, find_target, resume
from kafka_bridge.operating.partition_instructions import instruct
from kafka_bridge.operating.pause_watch import PauseWatch
from kafka_bridge.registry import ConsumerGroup, prefixed
from kafka_bridge.subscriptions import Subscription
from orders.effects import data_platform, monitoring, notification
from orders.models import OrderMinute, StoredOrder
from tests.effects.cast import cancelled_body, completed_body, headers
from tests.support.kafka import committed_offsets, produce
from tests.support.provider import Answer, Call, Provider
from tests.support.threads import in_another_session

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("topics", "outside")]

SHARED = "order-consumer-group"
EFFECTS = ("notification", "data-platform", "monitoring")
ALIMTALK, PLATFORM = "/alimtalk", "/platform"


@pytest.fixture
def outside(provider: Provider, settings: Settings) -> Provider:
    """AlimTalk and the data platform, each under its own path."""
    host = provider.url.removesuffix("/told")
    settings.ALIMTALK_URL, settings.DATA_PLATFORM_URL = f"{host}{ALIMTALK}", f"{host}{PLATFORM}"
    return provider


@pytest.fixture(autouse=True)
def shared(settings: Settings, own_ids: dict[str, str]) -> None:
    settings.KAFKA_GROUPS = own_ids | dict.fromkeys(EFFECTS, SHARED)


@pytest.fixture
def own_ids(settings: Settings) -> dict[str, str]:
    ids: dict[str, str] = settings.KAFKA_GROUPS
    return ids


def effects() -> tuple[ConsumerGroup, ...]:
    return notification.group(), data_platform.group(), monitoring.group()


def run_until_idle(*groups: ConsumerGroup) -> None:
    GroupConsumer(*groups).run(StopFlag(), until_idle=True)


@pytest.fixture
def watch() -> PauseWatch:
    """What the heartbeat of their process would read once a second; nothing is paused yet."""
    watch = PauseWatch(EFFECTS)
    watch.read()
    return watch


@pytest.fixture
def consuming(watch: PauseWatch) -> Iterator[Callable[[], GroupConsumer]]:
    """``consuming()`` starts a consumer of the shared id in the background."""
    stop, running = StopFlag(), list[Future[None]]()

    def start() -> GroupConsumer:
        consumer = GroupConsumer(*effects(), pauses=watch)
        running.append(in_another_session(lambda: consumer.run(stop)))
        return consumer

    yield start
    stop.request()
    for consumer in running:
        consumer.result(30)


def pay(*order_ids: int) -> None:
    """Orders that are all on one partition, each with an event id."""
    for order_id in order_ids:
        body = json.dumps(completed_body(order_id)).encode()
        produce("order-completed", [body], headers=dict(_byte_headers("order.completed.v1")))


def cancel(order_id: int) -> None:
    body = json.dumps(cancelled_body(order_id)).encode()
    produce("order-cancelled", [body], headers=dict(_byte_headers("order.cancelled.v1")))


def _byte_headers(event_type: str) -> Iterator[tuple[str, bytes]]:
    for name, value in headers(event_type):
        assert value is not None
        yield name, value


def orders_called(outside: Provider, path: str) -> list[int]:
    """The orders of the calls that came under a path."""
    return sorted(_order_of(call) for call in outside.calls if call.path == path)


def _order_of(call: Call) -> int:
    """The order that a call is about: AlimTalk gets it among the variables of its template."""
    body = json.loads(call.body)
    return int(body.get("variables", body)["orderId"])


def lag() -> int:
    subscription = Subscription(effects())
    return group_lag(subscription.group_id, subscription.topics)


def handled(effect: str) -> float:
    return REGISTRY.get_sample_value("consumer_messages_total", {"group": effect}) or 0.0


def known(effect: str) -> int:
    return ProcessedEvent.objects.filter(consumer_group=effect).count()


def refuse(path: str, *order_ids: int, answer: Answer = 400) -> Callable[[Call], Answer]:
    """Refuse the calls under ``path`` for these orders."""

    return lambda call: answer if call.path == path and _order_of(call) in order_ids else 200


# What each order has


def test_each_effect_has_each_order_once_and_the_offsets_are_those_of_the_one_id(
    outside: Provider, topics: str
) -> None:
    pay(1, 2, 3)
    cancel(1)
    run_until_idle(*effects())
    assert orders_called(outside, ALIMTALK) == [1, 2, 3]
    # The cancellation is for the two effects that read its topic.
    assert orders_called(outside, PLATFORM) == [1, 1, 2, 3]
    assert StoredOrder.objects.count() == 3
    assert [(row.completed, row.cancelled) for row in OrderMinute.objects.order_by("minute")] == [(3, 0), (0, 1)]
    assert {effect: known(effect) for effect in EFFECTS} == {"notification": 3, "data-platform": 4, "monitoring": 4}
    assert sum(committed_offsets(f"{topics}{SHARED}", "order-completed").values()) == 3
    assert sum(committed_offsets(f"{topics}{SHARED}", "order-cancelled").values()) == 1
    for effect in EFFECTS:
        assert not any(committed_offsets(f"{topics}order-{effect}-group", "order-completed").values())


# Failures


def test_a_message_that_fails_in_one_effect_is_a_dead_letter_of_that_effect_alone(
    outside: Provider, settings: Settings
) -> None:
    outside.answer = refuse(PLATFORM, 2)
    pay(1, 2, 3)
    run_until_idle(*effects())
    # A new id begins at the beginning: the same letter is seen again, and no result is repeated.
    settings.KAFKA_GROUPS = settings.KAFKA_GROUPS | dict.fromkeys(EFFECTS, "another-group")
    run_until_idle(*effects())
    letter = DeadLetter.objects.get()
    assert (letter.consumer_group, letter.offset) == ("data-platform", 1)
    assert orders_called(outside, ALIMTALK) == [1, 2, 3]
    assert orders_called(outside, PLATFORM) == [1, 2, 2, 3]
    assert sorted(StoredOrder.objects.values_list("order_id", flat=True)) == [1, 3]
    assert OrderMinute.objects.get().completed == 3


def test_an_effect_that_is_away_holds_up_those_behind_it_and_those_before_it_are_counted_once(
    outside: Provider, consuming: Callable[[], GroupConsumer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrying_partitions, "ALERT_AFTER_SECONDS", 0.5)
    before = {effect: handled(effect) for effect in EFFECTS}
    outside.answer = lambda call: 503 if call.path == PLATFORM else 200
    pay(1, 2)
    consumer = consuming()
    wait_until(lambda: len(orders_called(outside, PLATFORM)) >= 9, 30, "the second effect is not tried again")
    pay(3)
    wait_until(Alert.objects.exists, 30, "no alert was opened")
    alert = Alert.objects.get()
    assert alert.rule == f"waiting-{SHARED}"
    assert "data-platform: nothing gets through to the data platform" in alert.summary
    assert {(held.group, held.state) for held in consumer.report(0).partitions if held.waits_at == 0} == {
        (effect, "retrying") for effect in EFFECTS
    }
    assert (known("monitoring"), lag()) == (0, 3)

    outside.answer = lambda call: 200
    wait_until(lambda: lag() == 0, 30, "the consumer does not go on")
    wait_until(lambda: not Alert.objects.filter(ended_at=None).exists(), 30, "the alert does not end")
    assert orders_called(outside, ALIMTALK) == [1, 2, 3]
    assert {effect: handled(effect) - before[effect] for effect in EFFECTS} == dict.fromkeys(EFFECTS, 3)
    assert OrderMinute.objects.get().completed == 3


def test_a_message_that_a_provider_throttles_reaches_the_effects_behind_it_at_once(
    outside: Provider, consuming: Callable[[], GroupConsumer]
) -> None:
    before = {effect: handled(effect) for effect in EFFECTS}
    outside.answer = refuse(ALIMTALK, 2, answer=(429, {"Retry-After": "1"}))
    pay(1, 2, 3)
    consuming()
    wait_until(lambda: known("monitoring") == known("data-platform") == 3, 30, "the effects behind it wait")
    wait_until(lambda: lag() == 3 - 1, 30, "the first order is not finished")
    assert known("notification") == 2
    outside.answer = lambda call: 200
    wait_until(lambda: lag() == 0, 30, "the consumer does not go on")
    assert known("notification") == 3
    assert orders_called(outside, PLATFORM) == [1, 2, 3]
    assert {effect: handled(effect) - before[effect] for effect in EFFECTS} == dict.fromkeys(EFFECTS, 3)


# Operators


def test_an_operator_dead_letters_a_message_for_the_effect_that_fails_and_the_others_have_it(
    outside: Provider, consuming: Callable[[], GroupConsumer], watch: PauseWatch
) -> None:
    outside.answer = refuse(PLATFORM, 1, answer=503)
    pay(1)
    consumer = consuming()
    wait_until(lambda: any(held.waits_at == 0 for held in consumer.report(0).partitions), 30, "it does not wait")
    (number,) = {held.partition for held in consumer.report(0).partitions if held.waits_at == 0}
    # By whichever of the groups: on the page each has the partition.
    target = find_target("monitoring", "order-completed", number)
    instruct(target, PartitionInstruction.Action.DEAD_LETTER, actor="olga", reason="its platform is gone", offset=0)
    watch.read()
    wait_until(lambda: lag() == 0, 30, "the consumer does not go on")
    answer = PartitionInstruction.objects.get().answer
    assert answer.startswith("dead-lettered for data-platform: order-completed")
    assert DeadLetter.objects.get().consumer_group == "data-platform"
    assert {effect: known(effect) for effect in EFFECTS} == {"notification": 1, "data-platform": 0, "monitoring": 1}
    assert orders_called(outside, ALIMTALK) == [1]


@pytest.mark.parametrize("refusal", [503, 400])
def test_the_answer_names_all_effects_for_which_the_message_was_dead_lettered(
    refusal: int, outside: Provider, consuming: Callable[[], GroupConsumer], watch: PauseWatch
) -> None:
    outside.answer = lambda call: refusal if call.path == PLATFORM else 503
    pay(1)
    consumer = consuming()
    wait_until(lambda: any(held.waits_at == 0 for held in consumer.report(0).partitions), 30, "it does not wait")
    (number,) = {held.partition for held in consumer.report(0).partitions if held.waits_at == 0}
    target = find_target("monitoring", "order-completed", number)
    instruct(target, PartitionInstruction.Action.DEAD_LETTER, actor="olga", reason="both are gone", offset=0)
    watch.read()
    wait_until(lambda: lag() == 0, 30, "the consumer does not go on")
    assert {letter.consumer_group for letter in DeadLetter.objects.all()} == {"notification", "data-platform"}
    names, _, errors = PartitionInstruction.objects.get().answer.partition(
        f": order-completed[{number}]@0 failed with "
    )
    assert names == "dead-lettered for notification, data-platform"
    # What is refused for good is dead-lettered without the instruction, and its letter has the reason.
    reasons = [error.endswith(f" (in {name})") for name, error in zip(EFFECTS, errors.split("; "), strict=False)]
    assert reasons == ([True, True] if refusal == 503 else [True]), errors
    assert known("monitoring") == 1


def test_a_pause_of_one_of_them_stops_all(outside: Provider, watch: PauseWatch) -> None:
    pay(1)
    # Of before they shared the id: it stops them all the same.
    GroupPause.objects.create(consumer_group="monitoring", reason="wrong terms", actor="olga")
    watch.read()
    GroupConsumer(*effects(), pauses=watch).run(StopFlag(), until_idle=True)
    assert (outside.calls, lag()) == ([], 1)
    assert resume(PauseTarget("notification"), actor="olga", reason="right terms")
    watch.read()
    GroupConsumer(*effects(), pauses=watch).run(StopFlag(), until_idle=True)
    assert {effect: known(effect) for effect in EFFECTS} == dict.fromkeys(EFFECTS, 1)


# Ids that change


def test_changing_between_own_ids_and_one_id_over_live_data_repeats_and_loses_nothing(
    outside: Provider, settings: Settings, own_ids: dict[str, str]
) -> None:
    one_id = settings.KAFKA_GROUPS
    pay(1, 2)
    settings.KAFKA_GROUPS = own_ids
    # One is behind when the ids change.
    run_each(notification.group(), monitoring.group())
    pay(3)
    settings.KAFKA_GROUPS = one_id
    run_until_idle(*effects())
    pay(4)
    cancel(1)
    settings.KAFKA_GROUPS = own_ids
    run_each(data_platform.group(), monitoring.group())
    pay(5)
    settings.KAFKA_GROUPS = one_id
    run_until_idle(*effects())
    assert lag() == 0
    assert orders_called(outside, ALIMTALK) == [1, 2, 3, 4, 5]
    assert orders_called(outside, PLATFORM) == [1, 1, 2, 3, 4, 5]
    assert OrderMinute.objects.aggregate(paid=Sum("completed"), back=Sum("cancelled")) == {"paid": 5, "back": 1}
    assert not DeadLetter.objects.exists()


def run_each(*groups: ConsumerGroup) -> None:
    """Run a consumer of each group side by side, until all are idle."""
    running = [in_another_session(partial(run_until_idle, group)) for group in groups]
    for consumer in running:
        consumer.result(60)


# What may share


def test_a_group_without_an_inbox_shares_no_offsets() -> None:
    with pytest.raises(ValueError, match="issue: only groups with an inbox"):
        Subscription((notification.group(), ISSUE))


def test_what_a_consumer_reports_is_each_groups_own_topics(consuming: Callable[[], GroupConsumer]) -> None:
    pay(1)
    consumer = consuming()
    wait_until(lambda: known("monitoring") == 1 and lag() == 0, 30, "the order is not handled")
    report = consumer.report(0)
    assert report.groups == [*EFFECTS]
    topics = {group: {held.topic for held in report.partitions if held.group == group} for group in report.groups}
    paid, cancelled = prefixed("order-completed"), prefixed("order-cancelled")
    assert topics == {"notification": {paid}, "data-platform": {paid, cancelled}, "monitoring": {paid, cancelled}}
