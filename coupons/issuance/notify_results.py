"""What follows from the result of a request: its user is told, and so is the admission that let it in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from common.processes.lifecycle import StopFlag
from kafka_bridge.registry import ReceivedMessage

from ..admission import finished_requests, notify_finished
from ..clients import alimtalk
from ..clients.alimtalk import Notice
from ..events import IssueEnded
from ..messages import read_result_task
from ..policy import SUCCESS


class Told(NamedTuple):
    """A result, and how its user is told."""

    notice: Notice
    result: IssueEnded


def read_notice(message: ReceivedMessage) -> Told:
    """What the result in ``message`` tells; no user, if nobody could read whose request it was.

    Raises PoisonMessage.
    """
    event_id, result, traceparent = read_result_task(message)
    notice = Notice(
        event_id=event_id,
        user_id=result.user_id,
        template="coupon.issue.succeeded" if result.status == SUCCESS else "coupon.issue.failed",
        variables={
            "requestId": str(result.request_id),
            "couponType": result.coupon_type,
            "status": result.status,
            "reason": result.reason,
        },
        traceparent=traceparent,
    )
    return Told(notice, result)


def notify_results(told: Sequence[Told], stop: StopFlag) -> Sequence[Exception | None]:
    """Tell the admissions, then the users; returns and raises what ``alimtalk.send`` does.

    The issuer has told the admissions already, unless it died between its commit and that: then a piece that was taken
    comes back here.
    """
    notify_finished(finished_requests(one.result for one in told))
    return alimtalk.send([one.notice for one in told], stop)


def record_result(told: Sequence[Told]) -> None:
    """What ``alimtalk.keep`` does."""
    alimtalk.keep([one.notice for one in told])
