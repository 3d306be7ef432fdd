"""Making coupons."""

from __future__ import annotations

from typing import Any

from django.db import DataError, IntegrityError, transaction

from ..errors import InvalidRequest
from ..models import Coupon

_WHY = {
    "coupon_window": "it would close before it opens (without an opening, that is now)",
    "coupon_times": "its times must be in the years 1970 to 9998 (UTC)",
    "coupon_stock": "its quantity must not be negative",
    "coupon_discount": "its discount must be 1 to 100 percent, or 1 won or more",
    "coupon_valid_days": "it must be valid for 1 to 36500 days, or without end",
    "coupon_type_letters": "its type must be 1 to 64 of A-Z a-z 0-9 _ -",
}


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
                raise InvalidRequest(f"The coupon is not possible: {_reason(error)}.") from error
    differing = sorted(name for name, value in values.items() if getattr(existing, name) != value)
    if differing:
        raise InvalidRequest(
            f"A coupon {existing.coupon_type} exists and differs in {', '.join(differing)}:"
            " take another type, or change it in the admin."
        )
    return existing, False


def _reason(error: IntegrityError | DataError) -> str:
    constraint = getattr(getattr(error.__cause__, "diag", None), "constraint_name", None)
    return _WHY.get(constraint or "") or str(error).splitlines()[0].removesuffix(".")
