"""The payment provider behind a small interface; PAYMENT_GATEWAY names the class that speaks with it."""

from __future__ import annotations

from typing import Protocol, cast

from django.conf import settings
from django.utils.module_loading import import_string


class PaymentDeclined(Exception):
    """The provider said no, and no money has moved. The text is for the user."""


class PaymentInDoubt(Exception):
    """The provider did not answer in time, or not clearly: the money may have moved or not."""


class PaymentGateway(Protocol):
    """What orders ask of a payment provider.

    Both calls come again under the same idempotency key whenever their outcome is in doubt, also from other processes:
    the same key must move money at most once. They return when it is done, raise PaymentDeclined or PaymentInDoubt, and
    take at most ``LONGEST_CALL_SECONDS``. Any other exception counts as doubt. They are never called inside a
    transaction.

    PaymentDeclined speaks for its key: an earlier call under it that nobody has heard of moves no money any more. Where
    a provider cannot say so for certain, the gateway raises PaymentInDoubt.
    """

    def charge(self, *, order_id: int, amount: int, idempotency_key: str) -> None:
        """Take ``amount`` won (1 or more) for the order."""

    def refund(self, *, order_id: int, amount: int, idempotency_key: str) -> None:
        """Give ``amount`` won (1 or more) back."""


# Shorter than the lease of a payment: nobody asks again while the first is still on the line.
LONGEST_CALL_SECONDS = 20


class ApprovingGateway:
    """Approves everything at once: for demonstrations and tests, and for shops that take the money elsewhere."""

    def charge(self, *, order_id: int, amount: int, idempotency_key: str) -> None:
        return None

    def refund(self, *, order_id: int, amount: int, idempotency_key: str) -> None:
        return None


def payment_gateway() -> PaymentGateway:
    """A gateway of the class that PAYMENT_GATEWAY names. Raises ImportError if there is none."""
    return cast(PaymentGateway, import_string(settings.PAYMENT_GATEWAY)())
