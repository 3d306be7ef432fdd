"""What Prometheus can ask about orders; the names stand here and nowhere else."""

from prometheus_client import Counter

# Counted by the group ``monitoring`` as the events come, each once.
ORDERS_PAID = Counter("orders_paid_total", "Orders that were paid")
ORDERS_CANCELLED = Counter("orders_cancelled_total", "Paid orders that were cancelled")
WON_PAID = Counter("orders_paid_won_total", "Won that were paid; what was given back is not taken off")
