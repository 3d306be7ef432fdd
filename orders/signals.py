"""Domain events that stay in the process; a subscriber runs in the transaction of what raises the event.

What a subscriber raises undoes that transaction.
"""

from __future__ import annotations

from django.dispatch import Signal

# Sent with ``event``, an ``events.PaymentCompleted``, and ``order``, its row, which the sender has locked.
payment_completed = Signal()
