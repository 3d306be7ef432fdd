"""The figures of orders by the minute, and the alerts that follow from them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from django.db import IntegrityError, transaction
from django.db.models import Sum
from prometheus_client import REGISTRY
from pytest_django import Settings

from common.processes.lifecycle import StopFlag
from common.processes.outages import ServiceUnavailable
from kafka_bridge.consuming.batch import BatchHandler
from kafka_bridge.models import Alert, DeadLetter, ProcessedEvent
from kafka_bridge.operating.alerts import AlertRule, end_rules, open_alert
from kafka_bridge.registry import ReceivedMessage
from orders.effects import monitoring
from orders.management.commands.expire_orders import sweep
from orders.models import OrderMinute, Product
from tests.effects import cast
from tests.support.messages import message
from tests.support.orders import PRICE, cancelled, completed, make_paid_order, make_product
from tests.support.provider import Provider
from tests.support.threads import OpenTransaction, in_another_session, wait_until_blocked

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def tea(transactional_db: None) -> Product:
    return make_product("Tea")


@pytest.fixture(autouse=True)
def thresholds(settings: Settings) -> None:
    settings.ALERT_ORDERS_PER_MINUTE = 50
    settings.ALERT_CANCELLED_PERCENT = 20


def consume(*messages: ReceivedMessage) -> None:
    BatchHandler(monitoring.group()).handle(messages, StopFlag())


def ago(**time: float) -> datetime:
    return datetime.now(UTC) - timedelta(**time)


def this_minute(moment: datetime) -> datetime:
    return moment.replace(second=0, microsecond=0)


def paid(tea: Product, number: int, *, at: datetime) -> list[ReceivedMessage]:
    return [completed(make_paid_order({tea: 1}, paid_at=at)) for _ in range(number)]


def called_off(tea: Product, number: int, *, at: datetime) -> list[ReceivedMessage]:
    return [cancelled(make_paid_order({tea: 1}, paid_at=at, cancelled_at=at)) for _ in range(number)]


def open_rules() -> list[str]:
    return list(Alert.objects.filter(ended_at=None).order_by("rule").values_list("rule", flat=True))


# Figures


def test_orders_are_counted_in_the_minutes_of_their_own_time(tea: Product) -> None:
    first, second = datetime(2026, 3, 1, 12, 0, 59, tzinfo=UTC), datetime(2026, 3, 1, 12, 1, 0, tzinfo=UTC)
    order = make_paid_order({tea: 3}, paid_at=first, cancelled_at=second)
    consume(completed(order), cancelled(order), completed(make_paid_order({tea: 2}, paid_at=second)))
    assert list(OrderMinute.objects.order_by("minute").values_list("minute", "completed", "cancelled", "amount")) == [
        (this_minute(first), 1, 0, 3 * PRICE),
        (this_minute(second), 1, 1, 2 * PRICE),
    ]


def test_a_minute_grows_with_later_batches_and_the_same_events_count_once(tea: Product) -> None:
    now = ago()
    first, second = paid(tea, 3, at=now), paid(tea, 2, at=now)
    consume(*first, *first)
    consume(*second)
    consume(*first, *second)
    assert OrderMinute.objects.get().completed == 5
    assert ProcessedEvent.objects.filter(consumer_group="monitoring").count() == 5


def test_an_order_of_more_won_than_can_be_added_up_does_not_spoil_the_minute_of_the_others(tea: Product) -> None:
    now = ago()
    bad = [cast.completed(10**12 + n, paidAt=now.isoformat(), payAmount=2**63 - 1 - n) for n in range(2)]
    for item in (*bad, *paid(tea, 3, at=now)):
        consume(item)
    assert set(DeadLetter.objects.values_list("event_id", flat=True)) == {item.event_id for item in bad}
    assert OrderMinute.objects.get().amount == 3 * PRICE


def test_a_batch_that_is_rolled_back_counts_nothing(tea: Product, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = paid(tea, 3, at=ago())
    before = figure("orders_paid_total")

    def away() -> None:
        raise IntegrityError("the commit fails")

    monkeypatch.setattr(monitoring, "evaluate_alerts", away)
    with transaction.atomic(), pytest.raises(IntegrityError), transaction.atomic():
        monitoring.count_orders([monitoring.read_occurrence(item) for item in batch])
    monkeypatch.undo()
    assert (OrderMinute.objects.exists(), figure("orders_paid_total")) == (False, before)
    consume(*batch)
    assert (OrderMinute.objects.get().completed, figure("orders_paid_total")) == (3, before + 3)


def test_batches_that_count_the_same_minutes_at_once_do_not_deadlock(tea: Product) -> None:
    minutes = [datetime(2026, 3, 1, 12, minute, tzinfo=UTC) for minute in range(5)]
    forth, back = ([item for at in order for item in paid(tea, 1, at=at)] for order in (minutes, minutes[::-1]))
    with OpenTransaction(
        lambda: monitoring.count_orders([monitoring.read_occurrence(item) for item in forth])
    ) as other:
        mine = in_another_session(lambda: consume(*back))
        wait_until_blocked(beside=mine)
        other.commit()
        mine.result(10)
    assert OrderMinute.objects.aggregate(total=Sum("completed")) == {"total": 10}


def figure(name: str) -> float:
    return REGISTRY.get_sample_value(name) or 0.0


def test_prometheus_is_told_what_was_committed(tea: Product) -> None:
    names = ("orders_paid_total", "orders_cancelled_total", "orders_paid_won_total")
    before = [figure(name) for name in names]
    order = make_paid_order({tea: 3}, cancelled_at=ago())
    consume(completed(order), cancelled(order), completed(make_paid_order({tea: 2})))
    grown = [figure(name) - known for name, known in zip(names, before, strict=True)]
    assert grown == [2, 1, 5 * PRICE]


# Notices


def test_the_monitoring_service_gets_the_very_bytes_of_each_event(monitoring_service: Provider) -> None:
    body = json.dumps(cast.completed_body(5) | {"later": "field"}, indent=1).encode()
    event_id = uuid4()
    paid = message(body, topic="order-completed", headers=cast.headers("order.completed.v1", event_id))
    consume(paid, cast.cancelled(6))
    bodies = {call.key: call.body for call in monitoring_service.calls}
    assert bodies.pop(str(event_id)) == body
    assert [json.loads(other) for other in bodies.values()] == [cast.cancelled_body(6)]
    assert {call.headers["traceparent"] for call in monitoring_service.calls} == {cast.TRACEPARENT}
    assert OrderMinute.objects.aggregate(paid=Sum("completed"), back=Sum("cancelled")) == {"paid": 1, "back": 1}


def test_what_the_monitoring_service_refuses_is_a_dead_letter_and_neither_counted_nor_sent_again(
    monitoring_service: Provider,
) -> None:
    monitoring_service.answer = lambda call: 422 if b"7002" in call.body else 200
    batch = cast.many_completed([1, 2, 3])
    consume(*batch)
    consume(*batch)
    # The refused one is redelivered with the batch, and asked about once more.
    assert len(monitoring_service.calls) == 4
    letter = DeadLetter.objects.get()
    assert (letter.consumer_group, letter.offset) == ("monitoring", batch[1].offset)
    assert OrderMinute.objects.get().completed == 2


def test_notices_wait_for_a_monitoring_service_that_is_away_and_nothing_is_counted_before(
    monitoring_service: Provider,
) -> None:
    monitoring_service.answer = lambda call: 503
    batch = cast.many_completed([1, 2])
    with pytest.raises(ServiceUnavailable, match="the monitoring service"):
        consume(*batch)
    assert (OrderMinute.objects.exists(), DeadLetter.objects.exists()) == (False, False)
    monitoring_service.answer = lambda call: 200
    consume(*batch)
    assert OrderMinute.objects.get().completed == len(monitoring_service.effects) == 2


def test_the_preview_of_a_replay_names_the_order_and_the_key(monitoring_service: Provider) -> None:
    event = cast.completed(5)
    described = monitoring.group().describe_call(monitoring.read_occurrence(event))
    assert described == f"order 5 to the monitoring service, key {event.event_id}"


def test_without_its_url_monitoring_calls_no_service() -> None:
    group = monitoring.group()
    assert (group.call, group.largest_batch) == (None, None)


# Rules


def test_more_orders_in_a_minute_than_allowed_open_one_alert(tea: Product, caplog: pytest.LogCaptureFixture) -> None:
    now = ago()
    consume(*paid(tea, 50, at=now))
    assert open_rules() == []
    consume(*paid(tea, 1, at=now))
    consume(*paid(tea, 1, at=now))
    alert = Alert.objects.get()
    assert (alert.rule, alert.severity, alert.ended_at) == (monitoring.MANY_ORDERS.name, "warning", None)
    assert alert.summary.startswith("51 orders")
    assert alert.runbook == "docs/runbooks/orders-per-minute.md"
    assert [record.levelname for record in caplog.records if "51 orders" in record.getMessage()] == ["ERROR"]


def test_minutes_that_are_long_over_open_no_alert(tea: Product) -> None:
    consume(*paid(tea, 60, at=ago(minutes=62)))
    assert open_rules() == []
    consume(*paid(tea, 60, at=ago(minutes=50)))
    assert open_rules() == [monitoring.MANY_ORDERS.name]


def test_many_cancelled_orders_open_an_alert(tea: Product) -> None:
    now = ago()
    consume(*paid(tea, 20, at=now), *called_off(tea, 4, at=now))
    assert open_rules() == []
    consume(*called_off(tea, 1, at=now))
    alert = Alert.objects.get()
    assert (alert.rule, alert.severity) == (monitoring.MANY_CANCELLED.name, "critical")
    assert alert.summary.startswith("5 orders were cancelled and 20 paid")


def test_a_share_of_few_orders_says_nothing(tea: Product) -> None:
    now = ago()
    consume(*paid(tea, 19, at=now), *called_off(tea, 19, at=now))
    assert open_rules() == []


def test_what_was_cancelled_long_ago_says_nothing(tea: Product) -> None:
    consume(*paid(tea, 20, at=ago()), *called_off(tea, 20, at=ago(minutes=12)))
    assert open_rules() == []


@pytest.fixture
def alarming(tea: Product) -> None:
    now = ago()
    consume(*paid(tea, 60, at=now), *called_off(tea, 20, at=now))
    assert open_rules() == sorted([monitoring.MANY_ORDERS.name, monitoring.MANY_CANCELLED.name])


def pass_time(**time: float) -> None:
    """All that was counted moves into the past."""
    for row in list(OrderMinute.objects.all()):
        OrderMinute.objects.filter(minute=row.minute).update(minute=row.minute - timedelta(**time))


@pytest.mark.usefixtures("alarming")
def test_alerts_end_when_their_rule_no_longer_holds(tea: Product) -> None:
    pass_time(minutes=12)
    consume(*paid(tea, 1, at=ago()))
    assert open_rules() == [monitoring.MANY_ORDERS.name]
    pass_time(minutes=50)
    consume(*paid(tea, 1, at=ago()))
    assert open_rules() == []
    assert all(alert.ended_at is not None and alert.ended_at >= alert.started_at for alert in Alert.objects.all())


@pytest.mark.usefixtures("alarming")
def test_alerts_end_though_nobody_buys_any_more() -> None:
    sweep(StopFlag())
    assert open_rules() == sorted([monitoring.MANY_ORDERS.name, monitoring.MANY_CANCELLED.name])
    pass_time(minutes=62)
    sweep(StopFlag())
    assert open_rules() == []


@pytest.mark.usefixtures("alarming")
def test_an_alert_that_ended_opens_anew(tea: Product) -> None:
    pass_time(minutes=62)
    consume(*paid(tea, 1, at=ago()))
    consume(*paid(tea, 60, at=ago()))
    assert open_rules() == [monitoring.MANY_ORDERS.name]
    assert Alert.objects.filter(rule=monitoring.MANY_ORDERS.name).count() == 2


@pytest.mark.usefixtures("alarming")
def test_a_threshold_of_zero_turns_a_rule_off(tea: Product, settings: Settings) -> None:
    settings.ALERT_ORDERS_PER_MINUTE = settings.ALERT_CANCELLED_PERCENT = 0
    consume(*paid(tea, 1, at=ago()))
    assert open_rules() == []


# Alerts


FLOOD = AlertRule("flood", "critical")


@pytest.fixture
def flood() -> Callable[[], bool]:
    return lambda: open_alert(FLOOD, "the water rises")


def test_of_two_who_open_an_alert_at_once_one_does(flood: Callable[[], bool]) -> None:
    with OpenTransaction(flood) as other:
        mine = in_another_session(flood)
        wait_until_blocked(beside=mine)
        other.commit()
        assert mine.result(10) is False
    assert Alert.objects.count() == 1


def test_opening_and_ending_tell_whether_anything_changed(flood: Callable[[], bool]) -> None:
    assert [flood(), flood(), end_rules(["flood"]), end_rules(["flood"]), flood()] == [True, False, ["flood"], [], True]
    assert Alert.objects.count() == 2


def test_an_alert_that_is_rolled_back_is_not_logged(
    flood: Callable[[], bool], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with transaction.atomic():
        flood()
        transaction.set_rollback(True)
    assert "the water rises" not in caplog.text
    flood()
    assert "the water rises; see docs/runbooks/flood.md" in caplog.text
