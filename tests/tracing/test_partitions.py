"""The partition that is computed for a key is the one that the producer chooses."""

from __future__ import annotations

from django.conf import settings

from kafka_bridge.client import make_producer
from kafka_bridge.partitioner import partition_of
from kafka_bridge.registry import prefixed


def test_keys_of_all_lengths_are_on_the_partition_that_is_computed(topics: str) -> None:
    route = settings.KAFKA_ROUTES["coupon.issue.requested.v1"]
    found: dict[bytes | None, int | None] = {}
    producer = make_producer()
    for length in range(1, 20):
        for letter in "A9_é":
            key = (letter * length).encode()
            producer.produce(
                prefixed(route.topic),
                key=key,
                value=b"{}",
                on_delivery=lambda _, message: found.update({message.key(): message.partition()}),
            )
    assert producer.flush(30) == 0
    assert len(found) == 19 * 4
    assert len(set(found.values())) == route.partitions
    assert found == {key: partition_of(key or b"", route.partitions) for key in found}
