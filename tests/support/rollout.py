"""The share of users on the Redis queue, as the accept API sees it."""

from __future__ import annotations

from coupons.coupon_cache import coupon_cache
from coupons.models import Coupon


def share_of(coupon: Coupon) -> int:
    """Return the share for a coupon, in permille."""
    coupon_cache.clear()
    entry = coupon_cache.get(coupon.id)
    assert entry is not None
    return entry.rollout_permille
