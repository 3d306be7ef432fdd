"""Prometheus metrics of orders; their names are defined only here."""

from prometheus_client import Counter

# Counted by the group ``monitoring``, once per event.
ORDERS_PAID = Counter("orders_paid_total", "Orders that were paid")
ORDERS_CANCELLED = Counter("orders_cancelled_total", "Paid orders that were cancelled")
WON_PAID = Counter("orders_paid_won_total", "Won that were paid, refunds not subtracted")
