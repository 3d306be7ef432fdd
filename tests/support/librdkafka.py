"""Records that confluent-kafka refuses to send, put on a topic below it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from confluent_kafka import KafkaError, KafkaException
from django.conf import settings

from fuzz.raw_producer import RawProducer
from kafka_bridge.registry import prefixed


class RawRecord(NamedTuple):
    """``timestamp`` in ms since 1970, 0 for now; names of headers are any bytes."""

    value: bytes | None
    key: bytes | None = b"K"
    headers: Sequence[tuple[bytes, bytes | None]] = ()
    timestamp: int = 0


def produce_raw(topic: str, records: Sequence[RawRecord]) -> None:
    """Put ``records`` on a topic (named without prefix), each in a batch of its own, and wait until they are there.

    Raises KafkaException if the broker refuses one; the others are there.
    """
    producer = RawProducer(
        {
            "bootstrap.servers": settings.KAFKA_BOOTSTRAP_SERVERS,
            "partitioner": "murmur2_random",
            # The broker refuses a whole batch for the timestamp of one of its records.
            "batch.num.messages": "1",
            # A record that is sent again, since the partition just got its leader, stays before the later ones.
            "max.in.flight": "1",
        }
    )
    try:
        for record in records:
            assert producer.produce(prefixed(topic), record.value, record.key, record.headers, record.timestamp)
        assert producer.flush()
    finally:
        producer.close()
    if producer.refused:
        raise KafkaException(KafkaError(producer.refused[0]))
