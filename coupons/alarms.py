"""Alarms about coupons: one that is nearly sold out, and requests that ended by a dead letter."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import NamedTuple

from django.conf import settings

from common.postgres import arrays
from common.postgres.limited_reads import limited_read
from kafka_bridge.consuming.dead_letters import RELAY
from kafka_bridge.operating.alerts import alert_rule
from kafka_bridge.operating.evaluation import Condition, register_judge

from .consumer_groups import ISSUE

NEARLY_SOLD_OUT = alert_rule("nearly-sold-out", "warning", settings=("ALERT_SOLD_PERCENT",))
REQUEST_DEAD_LETTERED = alert_rule(
    "request-dead-lettered", "warning", settings=("ALERT_REQUEST_DEAD_LETTERED_MINUTES",)
)

SOLD_OUT_FOR = timedelta(minutes=10)
_LONGEST_GAP = 60.0

# Coupons are few. An index with `issued` would cost every issue: its updates would no longer be HOT.
_COUPONS = """
    SELECT id, coupon_type, issued, total_quantity, issued >= total_quantity, statement_timestamp()
    FROM coupons_coupon
    WHERE (issued < total_quantity OR id = ANY(%(watched)s::bigint[])) AND NOT paused AND NOT rehearsal
      AND opens_at <= statement_timestamp() AND (closes_at IS NULL OR closes_at > statement_timestamp())
"""
# Ids rise with time: the newest are read by the primary key. Where more come in the time, other alerts are open. A
# subquery per letter, since a join may scan the table of requests.
_NEWEST_LETTERS = 1000
_DEAD_LETTERED = f"""
    SELECT count(*), min(event_id::text)
    FROM (
        SELECT consumer_group, event_id, created_at
        FROM kafka_bridge_deadletter ORDER BY id DESC LIMIT {_NEWEST_LETTERS}
    ) AS letter
    WHERE created_at > statement_timestamp() - %(minutes)s * interval '1 minute'
      AND consumer_group = ANY(%(groups)s::text[])
      AND (SELECT reason FROM coupons_issuerequest WHERE request_id = letter.event_id) = 'ERROR'
"""


class _Sale(NamedTuple):
    coupon_id: int
    coupon_type: str
    issued: int
    total: int
    is_sold_out: bool
    now: datetime


class SoldShare:
    """Judges how much of its stock each open coupon has issued.

    A coupon that is sold out is watched for ten minutes more. It counts only if it was seen with stock: the row does
    not say when it was sold out.
    """

    def __init__(self) -> None:
        # Open coupons that had stock at an earlier look, each with the time at which it was first seen sold out.
        self._sold_out_at: dict[int, datetime | None] = {}
        self._looked_at = float("-inf")

    def __call__(self) -> Iterator[Condition]:
        """Yield the open coupons of which ``ALERT_SOLD_PERCENT`` or more is issued."""
        percent = settings.ALERT_SOLD_PERCENT
        if not percent:
            return
        if time.monotonic() - self._looked_at > _LONGEST_GAP:
            # Another process has judged meanwhile.
            self._sold_out_at = {}
        rows = limited_read(_COUPONS, {"watched": arrays.numbers(self._sold_out_at)})
        self._looked_at = time.monotonic()
        watched: dict[int, datetime | None] = {}
        for sale in (_Sale(*row) for row in rows):
            sold_out_at = (self._sold_out_at.get(sale.coupon_id) or sale.now) if sale.is_sold_out else None
            if sold_out_at is not None and sale.now - sold_out_at >= SOLD_OUT_FOR:
                continue
            watched[sale.coupon_id] = sold_out_at
            if 100 * sale.issued >= percent * sale.total:
                left = "sold out" if sale.is_sold_out else f"{sale.total - sale.issued} of {sale.total} are left"
                yield Condition(NEARLY_SOLD_OUT, f"coupon {sale.coupon_type}: {left}", sale.coupon_type)
        self._sold_out_at = watched


def register() -> None:
    """Register the judges; called once, when the app is ready."""
    register_judge([NEARLY_SOLD_OUT], SoldShare())
    register_judge([REQUEST_DEAD_LETTERED], judge_dead_lettered)


def judge_dead_lettered() -> Iterator[Condition]:
    """Yield one condition if requests, of any admission, ended by a dead letter in the minutes of the setting."""
    minutes = settings.ALERT_REQUEST_DEAD_LETTERED_MINUTES
    if not minutes:
        return
    values = {"minutes": minutes, "groups": arrays.texts([ISSUE.name, RELAY])}
    ((number, first),) = limited_read(_DEAD_LETTERED, values)
    if number:
        yield Condition(
            REQUEST_DEAD_LETTERED,
            f"{number} {'request' if number == 1 else 'requests'} of the last {minutes} minutes ended FAILED with ERROR"
            f" by a dead letter, one of them {first}",
        )
