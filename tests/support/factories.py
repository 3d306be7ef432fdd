"""A named cast of rows."""

from __future__ import annotations

from datetime import UTC, datetime

from factory.declarations import LazyAttribute, Sequence
from factory.django import DjangoModelFactory

from coupons.models import Coupon


class CouponFactory(DjangoModelFactory[Coupon]):
    """An open coupon with ten pieces."""

    class Meta:
        model = Coupon

    coupon_type = Sequence(lambda n: f"COUPON_{n}")  # type: ignore[no-untyped-call]
    name = LazyAttribute(lambda coupon: coupon.coupon_type)  # type: ignore[no-untyped-call]
    discount_type = Coupon.DiscountType.PERCENT
    discount_value = 10
    total_quantity = 10
    opens_at = datetime(2020, 1, 1, tzinfo=UTC)
