"""A named cast of rows."""

from __future__ import annotations

from datetime import UTC, datetime

import factory

from coupons.models import Coupon


class CouponFactory(factory.django.DjangoModelFactory[Coupon]):
    """An open coupon with ten pieces."""

    class Meta:
        model = Coupon

    coupon_type = factory.Sequence(lambda n: f"COUPON_{n}")
    name = factory.SelfAttribute("coupon_type")
    discount_type = Coupon.DiscountType.PERCENT
    discount_value = 10
    total_quantity = 10
    opens_at = datetime(2020, 1, 1, tzinfo=UTC)
