"""The errors of the bridge, and the sorting of everybody else's: transient, poison or unknown."""

from __future__ import annotations

from django.db import DataError

from common.http_calls import CallRefused
from common.processes.outages import ServiceUnavailable


class BridgeError(Exception):
    """Base of what kafka_bridge raises."""


class PoisonMessage(BridgeError):
    """A message that can never be handled, however often it is tried."""


class PayloadTooLarge(BridgeError):
    """An event's body is past what the topics are sure to take."""


class PublishOutsideTransaction(BridgeError):
    """publish() was called outside transaction.atomic: the event would not be part of any change."""


class TopicsUnavailable(ServiceUnavailable):
    """Topics that exist no more, or take no messages now; the text names each, and what to do."""


class BadClientOptions(BridgeError):
    """A property in KAFKA_PRODUCER_CONFIG or KAFKA_CONSUMER_CONFIG is none of librdkafka's."""


class PoisonLimitExceeded(BridgeError):
    """So many messages in a row fail that the fault is more likely here than in them."""


_POISON = (PoisonMessage, CallRefused, DataError, ValueError, UnicodeError, RecursionError)


def is_poison(error: BaseException) -> bool:
    """Whether ``error`` proves the message bad: trying again is of no use."""
    return isinstance(error, _POISON)
