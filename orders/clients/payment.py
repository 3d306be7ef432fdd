"""The interface to the payment provider; the setting PAYMENT_GATEWAY names the class that implements it."""

from __future__ import annotations

from typing import Protocol, cast

from django.conf import settings
from django.utils.module_loading import import_string


class PaymentDeclined(Exception):
    """The provider declined, and no money has moved. The message is shown to the user."""


class PaymentInDoubt(Exception):
    """The outcome is unknown: no answer in time, or an unclear one. The money may have moved."""


class PaymentGateway(Protocol):
    """The calls that orders make to a payment provider.

    Both calls are repeated under the same idempotency key while their outcome is in doubt, also by other processes: one
    key must move money at most once. A call returns when the money has moved, raises PaymentDeclined or PaymentInDoubt,
    and takes at most ``LONGEST_CALL_SECONDS``. Any other exception counts as PaymentInDoubt. The calls are never made
    inside a transaction.

    PaymentDeclined is final for its key: no earlier call under that key, whatever its outcome, moves money from then
    on. If the provider cannot guarantee that, the gateway raises PaymentInDoubt.
    """

    def charge(self, *, order_id: int, amount: int, idempotency_key: str) -> None:
        """Charge ``amount`` won (1 or more) for the order."""

    def refund(self, *, order_id: int, amount: int, idempotency_key: str) -> None:
        """Refund ``amount`` won (1 or more) of the order."""


# Shorter than the lease of a payment: no second call starts while the first is still in progress.
LONGEST_CALL_SECONDS = 20


class ApprovingGateway:
    """Approves every call immediately: for demonstrations, tests and shops that collect the money elsewhere."""

    def charge(self, *, order_id: int, amount: int, idempotency_key: str) -> None:
        """Move no money."""

    def refund(self, *, order_id: int, amount: int, idempotency_key: str) -> None:
        """Move no money."""


def payment_gateway() -> PaymentGateway:
    """Create an instance of the class that PAYMENT_GATEWAY names. Raises ImportError if the class does not exist."""
    return cast(PaymentGateway, import_string(settings.PAYMENT_GATEWAY)())
