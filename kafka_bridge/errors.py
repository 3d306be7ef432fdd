"""The errors of the bridge, and which errors are poison."""

from __future__ import annotations

from django.db import DataError

from common.http_calls import CallRefused
from common.processes.outages import ServiceUnavailable
from common.throttling import CallPostponed


class BridgeError(Exception):
    """Base of the errors of kafka_bridge."""


class PoisonMessage(BridgeError):
    """A message that no retry can handle."""


class PayloadTooLarge(BridgeError):
    """An event's body is larger than topics are sure to accept."""


class PublishOutsideTransaction(BridgeError):
    """publish() was called outside transaction.atomic: the event would not be committed with its change."""


class TopicsUnavailable(ServiceUnavailable):
    """Topics are missing or accept no messages at present; the text names each topic and the remedy."""


class BadClientOptions(BridgeError):
    """librdkafka refuses a property of KAFKA_PRODUCER_CONFIG or KAFKA_CONSUMER_CONFIG, or its value."""


class PoisonLimitExceeded(BridgeError):
    """Too many messages in a row fail: the cause is probably not in the messages."""


class ReplayPostponed(CallPostponed):
    """A dead letter cannot be replayed now: repeat the replay after ``seconds``. It does not count as a failed one."""


_POISON = (PoisonMessage, CallRefused, DataError, ValueError, UnicodeError, RecursionError)


def is_poison(error: BaseException) -> bool:
    """Whether ``error`` proves the message bad: a retry cannot succeed."""
    return isinstance(error, _POISON)
