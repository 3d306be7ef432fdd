"""What users are told about how their request for a coupon ended."""

from __future__ import annotations

from kafka_bridge.registry import ReceivedMessage

from .clients.alimtalk import Notice
from .messages import read_result_task
from .policy import SUCCESS


def read_notice(message: ReceivedMessage) -> Notice:
    """What the result in ``message`` tells its user; nobody, if nobody could read whose request it was.

    Raises PoisonMessage.
    """
    event_id, result, traceparent = read_result_task(message)
    return Notice(
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
