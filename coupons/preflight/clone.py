"""The hidden copy of a coupon on which a rehearsal is run."""

from __future__ import annotations

from datetime import timedelta

from django.conf import settings
from django.db import transaction
from django.db.models.functions import Now
from uuid_utils.compat import uuid7

from common.redis_client import redis_connection
from kafka_bridge.operating.audit import record_action
from kafka_bridge.partitioner import partition_of
from kafka_bridge.routes import Route

from ..admission.gate.store import GateStore
from ..admission.reservations import GATE
from ..messages import ISSUE_REQUESTED
from ..models import Coupon
from ..policy import REHEARSAL_PREFIX

# A copy whose rehearsal was killed closes by itself.
OPEN_FOR = timedelta(minutes=10)
_OPEN_SINCE = timedelta(minutes=1)
_MOST_TRIES = 1000
_COPIED = (
    "name", "admission", "discount_type", "discount_value", "discount_cap", "min_order_amount", "valid_days",
    "refund_policy",
)  # fmt: skip


def clone_create(coupon: Coupon, *, units: int, actor: str, reason: str) -> Coupon:
    """Create an open hidden copy of ``coupon`` with ``units`` units, and record the rehearsal and its ``reason``.

    If the route's key is the coupon type, its requests take the partition of the coupon's requests.
    """
    copied = {name: getattr(coupon, name) for name in _COPIED}
    with transaction.atomic():
        clone = Coupon.objects.create(
            **copied,
            coupon_type=_clone_type(coupon.coupon_type),
            total_quantity=units,
            rehearsal=True,
            # In the past: the clock of the coupon cache may be behind the database's.
            opens_at=Now() - _OPEN_SINCE,
            closes_at=Now() + OPEN_FOR,
        )
        record_action(
            actor=actor, action="coupon.rehearse", subject=f"coupon {coupon.coupon_type}", reason=reason,
            after={"clone": clone.coupon_type},
        )  # fmt: skip
    return clone


def clone_close(clone: Coupon) -> None:
    """Close the copy and delete its gate from Redis. Raises database errors and RedisError.

    Its rows stay, hidden by their flag: the topics keep its events, and a consumer that reads them again must find
    every request decided.
    """
    Coupon.objects.filter(id=clone.id).update(closes_at=Now())
    if clone.admission == GATE:
        redis_connection().delete(*GateStore(clone.id).keys)


def _clone_type(coupon_type: str) -> str:
    route: Route = settings.KAFKA_ROUTES[ISSUE_REQUESTED]
    for _ in range(_MOST_TRIES):
        name = f"{REHEARSAL_PREFIX}{uuid7().hex[-16:]}"
        if route.key_field != "couponType" or _partition(route, name) == _partition(route, coupon_type):
            break
    return name


def _partition(route: Route, coupon_type: str) -> int:
    return partition_of(route.key_of(coupon_type), route.partitions)
