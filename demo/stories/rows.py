"""Observes PostgreSQL: outbox rows, results, and which rows one transaction wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from uuid import UUID

from django.conf import settings
from django.db import connection, models
from django.db.models import BooleanField
from django.db.models.expressions import RawSQL

from coupons.messages import ISSUE_FAILED, ISSUE_SUCCEEDED
from coupons.models import IssueRequest, UserCoupon
from demo.stories.topics import OBSERVE_SECONDS
from demo.stories.words import counted, listed
from devstack import wait_until
from kafka_bridge.models import OutboxMessage, ProcessedEvent
from kafka_bridge.outbox.published import is_published_sql

_IS_PUBLISHED = RawSQL(is_published_sql(), [], BooleanField())

# Sequences keep their values through the rollback: one counts the tries, and one per try has its time in microseconds.
_FAIL = """
    CREATE SEQUENCE demo_tries;
    CREATE FUNCTION demo_fail() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF NEW.user_id = {user_id} THEN
            PERFORM setval('demo_try_' || nextval('demo_tries'), (extract(epoch FROM clock_timestamp()) * 1e6)::bigint);
            RAISE EXCEPTION 'the demo refuses the coupon of user {user_id}';
        END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER demo_fail BEFORE INSERT ON coupons_usercoupon FOR EACH ROW EXECUTE FUNCTION demo_fail();
"""
_MEND = """
    DROP TRIGGER demo_fail ON coupons_usercoupon;
    DROP FUNCTION demo_fail;
    DROP SEQUENCE demo_tries;
"""


def outbox_row(event_id: UUID) -> OutboxMessage:
    """Return the outbox row of an event. Raises DoesNotExist: the row is committed before the answer that names it."""
    return OutboxMessage.objects.get(event_id=event_id)


def result_row(request_id: UUID) -> OutboxMessage:
    """Return the outbox row of a decided request's result. Raises StopIteration without one."""
    rows = OutboxMessage.objects.filter(event_type__in=(ISSUE_SUCCEEDED, ISSUE_FAILED)).order_by("-id")
    return next(row for row in rows if json.loads(bytes(row.payload or b"{}"))["requestId"] == str(request_id))


def wait_published(event_id: UUID) -> None:
    """Wait until the relay has an acknowledgement of the brokers for an event. Raises TimeoutError after 90 s."""
    wait_until(
        OutboxMessage.objects.filter(_IS_PUBLISHED, event_id=event_id).exists,
        OBSERVE_SECONDS,
        f"the relay does not publish event {event_id}",
    )


def decision(request_id: UUID) -> IssueRequest:
    """Wait for the terminal row of a request and return it. Raises TimeoutError after 90 s."""
    found = IssueRequest.objects.filter(request_id=request_id)
    wait_until(found.exists, OBSERVE_SECONDS, f"request {request_id} is not decided")
    return found.get()


def decided(row: IssueRequest) -> str:
    """Return a decision in words: status, reason, the coupon and what is left."""
    reason = f" {row.reason}" if row.reason else ""
    coupon = f", user coupon {row.user_coupon_id}" if row.user_coupon_id else ""
    left = "" if row.remaining is None else f", {row.remaining} left"
    return f"{row.status}{reason}{coupon}{left}"


def user_coupon_of(row: IssueRequest) -> UserCoupon:
    """Return the coupon that a successful request got. Raises DoesNotExist for another request."""
    return UserCoupon.objects.get(id=row.user_coupon_id or 0)


def user_coupons(user_id: int, coupon_id: int) -> int:
    """Return how many coupons of ``coupon_id`` a user has."""
    return UserCoupon.objects.filter(user_id=user_id, coupon_id=coupon_id).count()


def wait_handled(group: str, event_id: UUID) -> ProcessedEvent:
    """Wait for the inbox row of an event in a group and return it. Raises TimeoutError after 90 s."""
    found = ProcessedEvent.objects.filter(consumer_group=group, event_id=event_id)
    wait_until(found.exists, OBSERVE_SECONDS, f"group {group} does not handle event {event_id}")
    return found.get()


def transaction_of(row: models.Model) -> int:
    """Return the number of the transaction that wrote a row last."""
    table, column = row._meta.db_table, row._meta.pk.column
    with connection.cursor() as cursor:
        cursor.execute(f'SELECT xmin::text::bigint FROM {table} WHERE "{column}" = %s', [row.pk])
        (number,) = cursor.fetchone() or (0,)
    return int(number)


@contextmanager
def failing_inserts(user_id: int) -> Iterator[None]:
    """Let PostgreSQL refuse every coupon of a user, as a fault that no retry cures; ``refusals`` has the attempts."""
    times = "".join(f"CREATE SEQUENCE {name};" for name in _times_of_tries())
    with connection.cursor() as cursor:
        cursor.execute(times + _FAIL.format(user_id=int(user_id)))
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute(_MEND)
            cursor.execute(f"DROP SEQUENCE {', '.join(_times_of_tries())}")


def refusals() -> list[float]:
    """Return when ``failing_inserts`` refused an insert, each by PostgreSQL's clock, in seconds since 1970."""
    times = []
    with connection.cursor() as cursor:
        for name in _times_of_tries():
            cursor.execute(f"SELECT last_value FROM {name} WHERE is_called")
            times += [row[0] / 1e6 for row in cursor.fetchall()]
    return times


def _times_of_tries() -> list[str]:
    """Return the names of the sequences with the times: one more than there may be tries, which shows one too many."""
    return [f"demo_try_{number}" for number in range(1, settings.CONSUMER_MAX_ATTEMPTS + 2)]


def refused(times: Sequence[float]) -> str:
    """Say of the times of refused inserts how many they are and how far apart."""
    gaps = [f"{after - before:.2f} s" for before, after in pairwise(times)]
    return f"PostgreSQL refused {counted(len(times), 'insert')}" + (f", {listed(gaps)} apart" if gaps else "")
