"""Act on the results of requests: notify the users and the admissions."""

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


class ResultNotice(NamedTuple):
    """A result, and the notice for its user."""

    notice: Notice
    result: IssueEnded


def read_notice(message: ReceivedMessage) -> ResultNotice:
    """Read the result in ``message`` and build its notice; ``user_id`` is None if the request's user was unreadable.

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
    return ResultNotice(notice, result)


def notify_results(notices: Sequence[ResultNotice], stop: StopFlag) -> Sequence[Exception | None]:
    """Notify the admissions, then the users; returns and raises the same as ``alimtalk.send``.

    The issuer notifies the admissions after its commit. If it died in between, a reserved unit is released here.
    """
    notify_finished(finished_requests(item.result for item in notices))
    return alimtalk.send([item.notice for item in notices], stop)


def record_result(notices: Sequence[ResultNotice]) -> None:
    """Store the notices, see ``alimtalk.keep``."""
    alimtalk.keep([item.notice for item in notices])


def describe_notice(notice: ResultNotice) -> str:
    """Say in one line what ``notify_results`` sends."""
    return alimtalk.describe(notice.notice)
