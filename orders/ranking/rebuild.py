"""Rebuild the ranking from PostgreSQL or from the topics, while the consumers run."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import date
from typing import NamedTuple

from django.db import connection, transaction
from django.db.models import Sum

from common.chunks import chunks
from common.processes.lifecycle import StopFlag, first_line
from common.processes.outages import ServiceUnavailable, is_transient
from kafka_bridge.registry import ReceivedMessage, is_of_types

from ..models import Order, OrderLine
from .days import last_days
from .sales import EVENT_TYPES, read_sale
from .selectors import paid_on
from .store import REBUILT_DAYS, Staging, rebuilding

logger = logging.getLogger(__name__)

_CHUNK = 5000


class Rebuilt(NamedTuple):
    """The rebuilt ranking. ``events`` is the number of events stored as counted, which are not counted again."""

    first_day: date
    last_day: date
    events: int
    unreadable: int = 0


def ranking_rebuild(*, stop: StopFlag) -> Rebuilt:
    """Rebuild the ranking from PostgreSQL. Must not be called within a transaction.

    Raises ServiceUnavailable if the rebuild fails or is stopped; the ranking is then unchanged.
    """
    with rebuilding() as staging:
        # One snapshot for all reads, taken by the first read: it contains the order of every event counted before the
        # rebuild began.
        with transaction.atomic(durable=True):
            with connection.cursor() as cursor:
                cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            days = last_days(REBUILT_DAYS)
            events = sum(_stage_day(staging, day, stop) for day in days)
        staging.swap(days)
    return Rebuilt(days[0], days[-1], events)


def ranking_rebuild_from(messages: Iterable[ReceivedMessage], *, stop: StopFlag) -> Rebuilt:
    """Rebuild the ranking from its events, which may arrive repeatedly and in any order. Raises as ``ranking_rebuild``.

    ``messages`` is iterated within the rebuild: it must determine the end offsets of the topics lazily, when its first
    item is requested.
    """
    with rebuilding() as staging:
        days = last_days(REBUILT_DAYS)
        events = unreadable = 0
        for chunk in chunks(messages, _CHUNK):
            sales = []
            for message in chunk:
                try:
                    if is_of_types(message, EVENT_TYPES):
                        sales.append(read_sale(message))
                except Exception as error:
                    if is_transient(error):
                        raise
                    logger.warning("%s is unreadable and left out: %s", message, first_line(error))
                    unreadable += 1
            _raise_if_stopped(stop)
            events += staging.count([sale for sale in sales if sale.day in days])
        _raise_if_stopped(stop)
        staging.swap(days)
    return Rebuilt(days[0], days[-1], events, unreadable)


def _stage_day(staging: Staging, day: date, stop: StopFlag) -> int:
    """Stage the sales of a day from PostgreSQL; returns the number of its events."""
    orders = paid_on([day])
    paid = orders.filter(status=Order.Status.PAID)
    sold = OrderLine.objects.filter(order__in=paid).values_list("product_id").annotate(Sum("quantity"))
    staging.add(day, dict(sold), ())
    # Cancelled orders too: neither of their events may be counted again.
    event_id_rows = orders.values_list("completed_event_id", "cancelled_event_id")
    events = 0
    for chunk in chunks(event_id_rows.iterator(chunk_size=_CHUNK), _CHUNK):
        _raise_if_stopped(stop)
        event_ids = [event_id for row in chunk for event_id in row if event_id is not None]
        staging.add(day, {}, event_ids)
        events += len(event_ids)
    return events


def _raise_if_stopped(stop: StopFlag) -> None:
    if stop:
        raise ServiceUnavailable("the rebuild was stopped; the ranking is unchanged")
