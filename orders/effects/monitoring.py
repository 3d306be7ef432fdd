"""Effect of a paid order: counts per minute, alerts when they exceed their thresholds, and the notice of the order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import NamedTuple

from django.conf import settings
from django.db import connection, transaction

from common.http_calls import HttpCall, endpoint
from common.postgres import arrays
from common.postgres.clock import isoformat_z
from common.processes.lifecycle import StopFlag
from kafka_bridge.operating.alerts import AlertRule, alert_rule, clear_alert, open_alert
from kafka_bridge.registry import ConsumerGroup, ReceivedMessage

from .. import metrics
from ..events import OrderCompleted
from ..messages import ORDER_CANCELLED, ORDER_COMPLETED, read_order_task
from ..models import OrderMinute

MANY_ORDERS = alert_rule("orders-per-minute", "warning", settings=("ALERT_ORDERS_PER_MINUTE",))
MANY_CANCELLED = alert_rule("orders-cancelled", "critical", settings=("ALERT_CANCELLED_PERCENT",))

# After a crash up to this many notices are sent again.
_LARGEST_BATCH = 100
# With fewer paid orders the percentage of cancellations means nothing.
FEWEST_ORDERS = 20

_TABLE = OrderMinute._meta.db_table
# Sorted by minute: two batches that count the same minutes in different sequences would deadlock.
_COUNT = f"""
    INSERT INTO {_TABLE} AS counted (minute, completed, cancelled, amount)
    SELECT minute, completed, cancelled, amount
    FROM unnest(%s::timestamptz[], %s::bigint[], %s::bigint[], %s::bigint[])
         AS row (minute, completed, cancelled, amount)
    ORDER BY minute
    ON CONFLICT (minute) DO UPDATE SET
        completed = counted.completed + excluded.completed,
        cancelled = counted.cancelled + excluded.cancelled,
        amount = counted.amount + excluded.amount
"""
# By the database's clock, not by the events' times: a backlog contains minutes that are long past.
_LATELY = f"""
    SELECT coalesce(max(completed), 0),
           coalesce(sum(completed) FILTER (WHERE minute > statement_timestamp() - interval '10 minutes'), 0)::bigint,
           coalesce(sum(cancelled) FILTER (WHERE minute > statement_timestamp() - interval '10 minutes'), 0)::bigint
    FROM {_TABLE} WHERE minute BETWEEN statement_timestamp() - interval '1 hour' AND statement_timestamp()
"""


class Occurrence(NamedTuple):
    """An order that was paid, or cancelled, in a minute (UTC); ``amount`` in won, 0 for a cancellation.

    ``notice`` is what ORDER_MONITORING_URL gets of it.
    """

    minute: datetime
    is_payment: bool
    amount: int
    order_id: int
    notice: HttpCall


@dataclass(slots=True)
class _Minute:
    completed: int = 0
    cancelled: int = 0
    amount: int = 0


def group() -> ConsumerGroup:
    """Build the consumer group of this effect; without ORDER_MONITORING_URL it calls no service."""
    is_posted = bool(settings.ORDER_MONITORING_URL)
    return ConsumerGroup(
        name="monitoring",
        event_types=(ORDER_COMPLETED, ORDER_CANCELLED),
        decode=read_occurrence,
        call=send_notices if is_posted else None,
        handle=count_orders,
        describe_call=describe_notice,
        inbox=True,
        largest_batch=_LARGEST_BATCH if is_posted else None,
        log_only=settings.ORDER_EFFECT_POLICIES["monitoring"] == "log_only",
    )


def read_occurrence(message: ReceivedMessage) -> Occurrence:
    """Decode the event in ``message``. Raises PoisonMessage."""
    task = read_order_task(message)
    event = task.event
    is_payment = isinstance(event, OrderCompleted)
    moment, amount = (event.paid_at, event.pay_amount) if isinstance(event, OrderCompleted) else (event.cancelled_at, 0)
    minute = moment.astimezone(UTC).replace(second=0, microsecond=0)
    notice = HttpCall(task.event_id, task.body, task.traceparent)
    return Occurrence(minute, is_payment, amount, event.order_id, notice)


def send_notices(occurrences: Sequence[Occurrence], stop: StopFlag) -> Sequence[Exception | None]:
    """Post each event unchanged to ORDER_MONITORING_URL; results as in ``Endpoint.post_all``."""
    service = endpoint("the monitoring service", settings.ORDER_MONITORING_URL, fix_hint="check ORDER_MONITORING_URL")
    return service.post_all([occurrence.notice for occurrence in occurrences], stop)


def describe_notice(occurrence: Occurrence) -> str:
    """Say in one line what ``send_notices`` sends."""
    return f"order {occurrence.order_id} to the monitoring service, key {occurrence.notice.idempotency_key}"


def count_orders(occurrences: Sequence[Occurrence]) -> None:
    """Count ``occurrences`` in the transaction of the batch, then evaluate the alerts."""
    minutes: dict[datetime, _Minute] = {}
    for occurrence in occurrences:
        counted = minutes.setdefault(occurrence.minute, _Minute())
        counted.completed += occurrence.is_payment
        counted.cancelled += not occurrence.is_payment
        counted.amount += occurrence.amount
    with connection.cursor() as cursor:
        cursor.execute(
            _COUNT,
            [
                arrays.texts([isoformat_z(minute) for minute in minutes]),
                arrays.numbers([counted.completed for counted in minutes.values()]),
                arrays.numbers([counted.cancelled for counted in minutes.values()]),
                arrays.numbers([counted.amount for counted in minutes.values()]),
            ],
        )
    transaction.on_commit(partial(_count_metrics, list(minutes.values())), robust=True)
    evaluate_alerts()


def _count_metrics(minutes: Sequence[_Minute]) -> None:
    metrics.ORDERS_PAID.inc(sum(minute.completed for minute in minutes))
    metrics.ORDERS_CANCELLED.inc(sum(minute.cancelled for minute in minutes))
    metrics.WON_PAID.inc(sum(minute.amount for minute in minutes))


def evaluate_alerts() -> None:
    """Open the alerts whose rule is met and end the others; a threshold of 0 turns its rule off."""
    with connection.cursor() as cursor:
        cursor.execute(_LATELY)
        busiest, completed, cancelled = cursor.fetchone()
    most = settings.ALERT_ORDERS_PER_MINUTE
    _set_alert(
        MANY_ORDERS,
        holds=0 < most < busiest,
        summary=f"{busiest} orders were paid in one minute of the last hour, more than {most}",
    )
    percent = settings.ALERT_CANCELLED_PERCENT
    _set_alert(
        MANY_CANCELLED,
        holds=bool(percent) and completed >= FEWEST_ORDERS and 100 * cancelled > percent * completed,
        summary=f"{cancelled} orders were cancelled and {completed} paid in ten minutes, more than {percent} %",
    )


def _set_alert(rule: AlertRule, *, holds: bool, summary: str) -> None:
    if holds:
        open_alert(rule, summary)
    else:
        clear_alert(rule)
