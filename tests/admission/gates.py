"""What tests of the gate share: candidates, and a gate that lost something."""

from __future__ import annotations

from django.db import transaction
from django_redis import get_redis_connection
from prometheus_client import REGISTRY
from uuid_utils.compat import uuid7

from coupons.admission import AdmissionRequest
from coupons.admission.gate.store import GateStore
from coupons.coupon_cache import coupon_cache
from coupons.issuance import accept_group
from coupons.issuance.accept import incoming_request
from coupons.models import Coupon, UserCoupon
from coupons.redemption import coupon_hold, coupon_refund, coupon_use


def holders() -> set[int]:
    return set(UserCoupon.objects.values_list("user_id", flat=True))


def candidate(coupon: Coupon, user_id: int) -> AdmissionRequest:
    return AdmissionRequest(uuid7(), user_id, coupon.id, coupon.total_quantity)


def flush() -> None:
    get_redis_connection("default").flushdb()


def forget_user(coupon: Coupon, user_id: int) -> None:
    """The gate loses somebody who has a piece."""
    get_redis_connection("default").hdel(GateStore(coupon.id).keys.holders, user_id)


def keyed(coupon: Coupon, user_id: int, key: str) -> accept_group.IncomingRequest:
    """What a request under a key puts into its line."""
    cached = coupon_cache.get(coupon.id)
    assert cached is not None
    return incoming_request(cached, user_id=user_id, caller_id=user_id, idempotency_key=key, traceparent="")


def use_and_refund(piece: UserCoupon) -> None:
    """An order uses the coupon, is paid and cancelled again."""
    with transaction.atomic():
        coupon_hold(user_coupon_id=piece.id, user_id=piece.user_id, order_id=5, amount=1000)
        coupon_use(user_coupon_id=piece.id, order_id=5)
        coupon_refund(user_coupon_id=piece.id, order_id=5)


def loads() -> float:
    """How many gates this process has loaded."""
    return REGISTRY.get_sample_value("issue_gate_loaded_total") or 0.0
