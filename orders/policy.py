"""The rules of orders, free of I/O."""

from __future__ import annotations

from collections.abc import Iterable

PENDING = "PENDING"
PAYING = "PAYING"
PAID = "PAID"
CANCELLED = "CANCELLED"
EXPIRED = "EXPIRED"

MOST_LINES = 100
MOST_PIECES = 10_000
# What fits the column, and with it every sum that the rankings make of it.
MOST_WON = 10**15


def total_amount(lines: Iterable[tuple[int, int]]) -> int:
    """The price of (unit price, quantity) lines, in won. Raises ValueError past ``MOST_WON``."""
    total = sum(unit_price * quantity for unit_price, quantity in lines)
    if total > MOST_WON:
        raise ValueError(f"an order is at most {MOST_WON} won")
    return total
