"""The rules of orders, free of I/O."""

from __future__ import annotations

from collections.abc import Iterable

MAX_LINES = 100
# Per line.
MAX_QUANTITY = 10_000
# Fits a bigint column, and so do the sums over many orders.
MAX_WON = 10**15


def total_amount(lines: Iterable[tuple[int, int]]) -> int:
    """Sum (unit price, quantity) lines, in won. Raises ValueError above ``MAX_WON``."""
    total = sum(unit_price * quantity for unit_price, quantity in lines)
    if total > MAX_WON:
        raise ValueError(f"an order is at most {MAX_WON} won")
    return total
