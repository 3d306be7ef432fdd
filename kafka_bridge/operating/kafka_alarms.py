"""Alerts about Kafka: a group that is behind or paused, brokers that do not answer, partitions that cannot be written.

They are judged by what PostgreSQL holds, see ``kafka_watch``: no request to Kafka delays another alert.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from datetime import timedelta
from itertools import groupby

from django.conf import settings
from django.db.models.functions import Now

from common.postgres.clock import isoformat_z

from ..lag import PartitionLag, lag_by_partition
from ..models import BrokerState
from ..subscriptions import subscription_name
from .alerts import alert_rule
from .evaluation import Condition, NotJudged, register_judge
from .group_pauses import PauseTarget, pauses

LAG = alert_rule("lag", "warning", settings=("ALERT_LAG_MS", "ALERT_LAG_SECONDS"))
PAUSED = alert_rule("paused", "warning", settings=("ALERT_LAG_SECONDS",))
BROKER_DOWN = alert_rule("broker-down", "critical")
BROKERS_MISSING = alert_rule("brokers-missing", "warning", settings=("KAFKA_BROKERS_EXPECTED",))

_NOT_ASKED = "the brokers have not been asked lately"
# Requests without an answer, one after the other, that open the alert: a single one may be lost with a connection.
MOST_SILENCES = 3
# Answers that know too few brokers, one after the other: a broker that restarts is away for a moment.
MOST_FEW_ANSWERS = 2
# A partition has no leader for a moment when it is new or its broker stops.
_PROBLEM_SECONDS = 5.0
# Of the state of the brokers: five looks of the watch.
_FRESH = timedelta(seconds=25)
# What a summary names; the dashboard has the others.
_MOST_NAMED = 3


def register() -> None:
    """Register the judges of these rules."""
    register_judge([LAG], judge_lag)
    register_judge([PAUSED], judge_paused)
    register_judge([BROKER_DOWN], judge_broker_down)
    register_judge([BROKERS_MISSING], judge_brokers_missing)


def judge_lag() -> Iterator[Condition]:
    """Yield a condition per subscription that is behind, with its worst partitions; what is paused is left out."""
    most = settings.ALERT_LAG_MS
    if not most:
        return
    paused = {PauseTarget(row.consumer_group, row.topic, row.partition) for row in pauses()}
    behind: dict[str, dict[tuple[str, int], PartitionLag]] = {}
    for lag in lag_by_partition():
        if lag.milliseconds > most and not _is_paused(lag, paused):
            # Groups that share an id have one lag, which is reported for each.
            behind.setdefault(subscription_name(lag.place.group), {})[lag.place.topic, lag.place.partition] = lag
    for name, lags in behind.items():
        summary = f"group {name} is behind: {_worst(list(lags.values()))}"
        yield Condition(LAG, summary, subject=name, for_seconds=settings.ALERT_LAG_SECONDS)


def judge_paused() -> Iterator[Condition]:
    """Yield a condition per subscription or worker that an operator has paused, as a whole or in part."""
    by_name = sorted(pauses(), key=lambda row: subscription_name(row.consumer_group))
    for name, rows in groupby(by_name, key=lambda row: subscription_name(row.consumer_group)):
        lines = [f"{row} is paused by {row.actor} since {isoformat_z(row.created_at)}: {row.reason}" for row in rows]
        yield Condition(PAUSED, _some(lines), subject=name, for_seconds=settings.ALERT_LAG_SECONDS)


def judge_broker_down() -> Iterator[Condition]:
    """Yield a condition while no broker answers, or while a partition of ours cannot be written."""
    state = _broker_state()
    if state is None:
        raise NotJudged(_NOT_ASKED)
    elif state.silences >= MOST_SILENCES:
        since = f" since {isoformat_z(state.answered_at)}" if state.answered_at else ""
        yield Condition(BROKER_DOWN, f"no broker at {settings.KAFKA_BOOTSTRAP_SERVERS} has answered{since}")
    elif state.problems:
        yield Condition(BROKER_DOWN, _some(state.problems), for_seconds=_PROBLEM_SECONDS)


def judge_brokers_missing() -> Iterator[Condition]:
    """Yield a condition while fewer brokers than expected are there."""
    state = _broker_state()
    if state is None:
        raise NotJudged(_NOT_ASKED)
    elif state.few_answers >= MOST_FEW_ANSWERS:
        there = f"{len(state.brokers)} of {settings.KAFKA_BROKERS_EXPECTED} brokers are there"
        yield Condition(BROKERS_MISSING, f"{there}: {', '.join(state.brokers) or 'none'}")


def _is_paused(lag: PartitionLag, paused: Collection[PauseTarget]) -> bool:
    """Whether an operator has paused the partition or its group, or its consumer says that it is paused."""
    return lag.state == "paused" or PauseTarget(*lag.place) in paused or PauseTarget(lag.place.group) in paused


def _broker_state() -> BrokerState | None:
    """Return what the brokers answered last, None if they have not been asked lately."""
    return BrokerState.objects.filter(asked_at__gt=Now() - _FRESH).first()


def _worst(lags: Sequence[PartitionLag]) -> str:
    """Name the partitions that are most behind, and what is known of their consumer."""
    worst = sorted(lags, key=lambda lag: lag.milliseconds, reverse=True)
    return _some([f"{_partition(lag)} by {lag.milliseconds / 1000:.1f} s, {_messages(lag)}" for lag in worst])


def _partition(lag: PartitionLag) -> str:
    return f"{lag.place.topic}[{lag.place.partition}]"


def _messages(lag: PartitionLag) -> str:
    count = "1 message" if lag.messages == 1 else f"{lag.messages} messages"
    if lag.reported_by == "sweep":
        return f"{count}, no running process consumes it"
    return f"{count}, {lag.state}" if lag.state not in ("", "ok") else count


def _some(lines: Sequence[str]) -> str:
    """Join the first lines, with the number of those that are left out."""
    more = f"; and {len(lines) - _MOST_NAMED} more" if len(lines) > _MOST_NAMED else ""
    return "; ".join(lines[:_MOST_NAMED]) + more
