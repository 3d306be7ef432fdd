"""The baseline of the issuer: a straightforward consumer with one ORM transaction per message."""

from __future__ import annotations

import json
from uuid import UUID

from django.db import transaction
from django.utils import timezone
from django.utils.dateparse import parse_datetime
from uuid_utils.compat import uuid7

from coupons.models import Coupon, IssueRequest, UserCoupon
from kafka_bridge.models import OutboxMessage
from kafka_bridge.registry import ReceivedMessage


def issue_one(message: ReceivedMessage) -> None:
    """Lock the coupon, check whether the user has it, and write user coupon, stock, result and event."""
    body = json.loads(message.value or b"{}")
    now = timezone.now()
    with transaction.atomic():
        coupon = Coupon.objects.select_for_update().get(id=body["couponId"])
        reason, user_coupon_id = None, None
        if UserCoupon.objects.filter(coupon=coupon, user_id=body["userId"]).exists():
            reason = IssueRequest.Reason.ALREADY_ISSUED
        elif coupon.remaining <= 0:
            reason = IssueRequest.Reason.SOLD_OUT
        else:
            user_coupon_id = UserCoupon.objects.create(coupon=coupon, user_id=body["userId"], issued_at=now).id
            coupon.issued += 1
            coupon.save(update_fields=["issued"])
        status = IssueRequest.Status.SUCCESS if reason is None else IssueRequest.Status.FAILED
        IssueRequest.objects.create(
            request_id=UUID(body["requestId"]),
            coupon=coupon,
            coupon_type=coupon.coupon_type,
            user_id=body["userId"],
            status=status,
            reason=reason,
            user_coupon_id=user_coupon_id,
            source=body["source"],
            requested_at=parse_datetime(body["requestedAt"]),
            processed_at=now,
            topic=message.topic,
            partition=message.partition,
            offset=message.offset,
            remaining=coupon.remaining,
        )
        result = {
            "requestId": body["requestId"],
            "userId": body["userId"],
            "couponId": coupon.id,
            "couponType": coupon.coupon_type,
            "status": status,
            "reason": reason,
            "userCouponId": user_coupon_id,
            "processedAt": now.isoformat(),
        }
        OutboxMessage.objects.create(
            event_id=uuid7(),
            event_type="coupon.issue.succeeded.v1" if reason is None else "coupon.issue.failed.v1",
            topic="coupon-issue-response",
            key=coupon.coupon_type.encode(),
            payload=json.dumps(result).encode(),
            shard=0,
        )
