"""The ranking made anew, from PostgreSQL or from the history of the topics, while consumers are at work."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from datetime import date
from itertools import islice
from typing import NamedTuple, TypeVar

from django.db import connection, transaction
from django.db.models import Sum

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

_Item = TypeVar("_Item")


class Rebuilt(NamedTuple):
    """What is in the ranking now. ``events`` are those that will not be counted again."""

    first_day: date
    last_day: date
    events: int
    unreadable: int = 0


def ranking_rebuild(*, stop: StopFlag) -> Rebuilt:
    """Make the ranking anew from PostgreSQL. Not within a transaction.

    Raises ServiceUnavailable if it could not be done, or was told to stop: the ranking is as it was then.
    """
    with rebuilding() as staging:
        # One snapshot for all reads, taken by the first of them: an event that was counted before is of an order that
        # is in it.
        with transaction.atomic(durable=True):
            with connection.cursor() as cursor:
                cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            days = last_days(REBUILT_DAYS)
            events = sum(_stage_day(staging, day, stop) for day in days)
        staging.swap(days)
    return Rebuilt(days[0], days[-1], events)


def ranking_rebuild_from(messages: Iterable[ReceivedMessage], *, stop: StopFlag) -> Rebuilt:
    """Make the ranking anew from its events, which may come several times and in any order. Raises as above.

    ``messages`` is read within the rebuild: it must find where the topics end when the first is asked for.
    """
    with rebuilding() as staging:
        days = last_days(REBUILT_DAYS)
        events = unreadable = 0
        for chunk in _chunks(messages):
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
            _unless_stopped(stop)
            events += staging.count([sale for sale in sales if sale.day in days])
        _unless_stopped(stop)
        staging.swap(days)
    return Rebuilt(days[0], days[-1], events, unreadable)


def _stage_day(staging: Staging, day: date, stop: StopFlag) -> int:
    """Bring what PostgreSQL knows of a day; returns the number of its events."""
    orders = paid_on([day])
    paid = orders.filter(status=Order.Status.PAID)
    sold = OrderLine.objects.filter(order__in=paid).values_list("product_id").annotate(Sum("quantity"))
    staging.add(day, dict(sold), ())
    # Those of cancelled orders too: both of their events are done with.
    told = orders.values_list("completed_event_id", "cancelled_event_id")
    events = 0
    for chunk in _chunks(told.iterator(chunk_size=_CHUNK)):
        _unless_stopped(stop)
        event_ids = [event_id for row in chunk for event_id in row if event_id is not None]
        staging.add(day, {}, event_ids)
        events += len(event_ids)
    return events


def _chunks(items: Iterable[_Item]) -> Iterator[list[_Item]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, _CHUNK)):
        yield chunk


def _unless_stopped(stop: StopFlag) -> None:
    if stop:
        raise ServiceUnavailable("the rebuild was told to stop; the ranking is as it was")
