"""Making coupons."""

from __future__ import annotations

from typing import Any

from django.db import DataError, IntegrityError, transaction

from ..errors import InvalidRequest
from ..models import Coupon


def coupon_create(**values: Any) -> tuple[Coupon, bool]:
    """Create a coupon of ``values`` (fields of Coupon); the same again changes nothing. Returns (coupon, created).

    Raises InvalidRequest if a coupon of that type exists with other values, or if the values contradict each other.
    """
    existing = Coupon.objects.filter(coupon_type=values["coupon_type"]).first()
    if existing is None:
        try:
            with transaction.atomic():
                return Coupon.objects.create(**values), True
        except (IntegrityError, DataError) as error:
            existing = Coupon.objects.filter(coupon_type=values["coupon_type"]).first()
            if existing is None:
                raise InvalidRequest(f"The coupon is not possible: {str(error).splitlines()[0]}") from error
    differing = sorted(name for name, value in values.items() if getattr(existing, name) != value)
    if differing:
        raise InvalidRequest(
            f"A coupon {existing.coupon_type} exists and differs in {', '.join(differing)}:"
            " take another type, or change it in the admin."
        )
    return existing, False
