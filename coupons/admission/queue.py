"""Every request is admitted; the issuer alone decides who gets a coupon."""

from __future__ import annotations

from .base import Admission


class Queue(Admission):
    """One INSERT per group of requests of any coupons: the cheapest admission, without early refusals."""
