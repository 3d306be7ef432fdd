"""Everybody is let in; who gets a coupon is the issuer's decision alone."""

from __future__ import annotations

from .base import Admission


class Queue(Admission):
    """One INSERT per group of requests, whatever their coupons: the cheapest yes, and no early no."""
