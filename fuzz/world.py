"""The objects that input refers to: coupons and products of the run, and ids that the service has returned."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from random import Random
from uuid import UUID

from common.processes.outages import ServiceUnavailable
from coupons.admission import ADMISSIONS
from coupons.models import Coupon, RolloutChange
from couponsite.auth.tokens import ISSUE_FOR_OTHERS, issue_access_token
from orders.models import Product

# Hostile input uses the users 1 to 200, valid input those from 5,000,000,000 on, so that the two do not interfere.
HOSTILE_USERS = 200
_FIRST_VALID_USER = 5_000_000_000
_UNLIMITED = 10**9
_SMALL = 20
_LIFETIME = timedelta(days=1)
_KEPT = 500
_LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
_ROLLOUT_PERCENT = 30


@dataclass(slots=True)
class World:
    """Rows of the run and the newest ids of each kind. Shared by threads, which only append and choose."""

    plenty: Sequence[Coupon]
    others: Sequence[Coupon]
    products: Sequence[Product]
    request_ids: deque[UUID] = field(default_factory=lambda: deque(maxlen=_KEPT))
    order_ids: deque[int] = field(default_factory=lambda: deque(maxlen=_KEPT))
    user_coupon_ids: deque[int] = field(default_factory=lambda: deque(maxlen=_KEPT))
    _users: itertools.count[int] = field(default_factory=lambda: itertools.count(_FIRST_VALID_USER))

    @property
    def coupons(self) -> Sequence[Coupon]:
        return [*self.plenty, *self.others]

    def new_user(self) -> int:
        """Return a user id that was not used before."""
        return next(self._users)

    def now(self) -> str:
        """Return the current time as the service writes it."""
        return datetime.now(UTC).isoformat().replace("+00:00", "Z")

    def any_user(self, random: Random) -> int:
        return random.randint(1, HOSTILE_USERS)


def make_world() -> World:
    """Create coupons of each admission, products, and a rollout of 30 % to the Redis queue.

    Raises ServiceUnavailable unless the database is empty, because a run leaves garbage behind.
    """
    if Coupon.objects.exists() or Product.objects.exists():
        raise ServiceUnavailable("DATABASE_URL names a database with coupons or products: give an empty one")
    RolloutChange.objects.create(flag=RolloutChange.ALL_COUPONS, percent=_ROLLOUT_PERCENT)
    now = datetime.now(UTC)
    usual = {"discount_type": Coupon.DiscountType.FIXED, "discount_value": 100, "opens_at": _LONG_AGO}
    plenty = [
        Coupon(coupon_type=f"PLENTY_{name}", name=name, admission=name, total_quantity=_UNLIMITED, **usual)
        for name in ADMISSIONS
    ]
    others = [
        Coupon(coupon_type=f"FEW_{name}", name=name, admission=name, total_quantity=_SMALL, **usual)
        for name in ADMISSIONS
    ]
    others += [
        Coupon(coupon_type="PAUSED", name="paused", total_quantity=_SMALL, paused=True, **usual),
        Coupon(coupon_type="LATER", name="later", total_quantity=_SMALL, **usual | {"opens_at": now + _LIFETIME * 99}),
    ]
    return World(
        Coupon.objects.bulk_create(plenty),
        Coupon.objects.bulk_create(others),
        Product.objects.bulk_create([Product(name=name, price=1000) for name in ("tea", "차 \U0001f375")]),
    )


@lru_cache(maxsize=1000)
def bearer(user_id: int, *, for_others: bool = False) -> bytes:
    """Return the value of the Authorization header of a user."""
    return f"Bearer {issue_access_token(user_id, ISSUE_FOR_OTHERS if for_others else '', _LIFETIME)}".encode()
