"""Reading of topics from their beginning, outside of all consumer groups: commits no offsets."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator

from common.processes.lifecycle import StopFlag, first_line
from common.processes.outages import ServiceUnavailable

from ..client import PARTITION_EOF, Consumer, KafkaException, Message, TopicPartition, make_consumer
from ..registry import ReceivedMessage, prefixed, unprefixed
from .received import received

_REQUEST_SECONDS = 10.0
_SILENCE_SECONDS = 30.0
_CHUNK = 1000

Partition = tuple[str, int]


def read_history(topics: Collection[str], stop: StopFlag) -> Iterator[ReceivedMessage]:
    """Yield all messages of ``topics`` (without the prefix), in order per partition, up to the ends at the start.

    Ends early on ``stop``. Raises ServiceUnavailable if Kafka does not answer or a topic does not exist.
    """
    consumer = make_consumer(prefixed("history"))
    try:
        ends = _ends(consumer, topics)
        consumer.assign([TopicPartition(*partition, first) for partition, (first, _) in ends.items()])
        last_message_at = time.monotonic()
        while ends and not stop:
            messages = consumer.consume(_CHUNK, timeout=0.5)
            if messages:
                last_message_at = time.monotonic()
            elif time.monotonic() - last_message_at > _SILENCE_SECONDS:
                raise ServiceUnavailable(f"Kafka sends no more messages of {next(iter(ends))[0]}; try again later")
            for message in messages:
                yield from _before_end(message, ends)
    except KafkaException as error:
        raise ServiceUnavailable(f"Kafka does not return the messages of the topics: {first_line(error)}") from error
    finally:
        consumer.close()


def _ends(consumer: Consumer, topics: Collection[str]) -> dict[Partition, tuple[int, int]]:
    """Return the first offset of each partition that is not empty, and the offset after its last."""
    known = consumer.list_topics(timeout=_REQUEST_SECONDS).topics
    ends = {}
    for name in sorted({prefixed(topic) for topic in topics}):
        if name not in known:
            raise ServiceUnavailable(
                f"there is no topic {name}: run create_topics, or correct KAFKA_ROUTES or KAFKA_FORMER_TOPICS"
            )
        for number in known[name].partitions:
            watermarks = consumer.get_watermark_offsets(TopicPartition(name, number), timeout=_REQUEST_SECONDS)
            if watermarks is None:
                raise ServiceUnavailable(f"Kafka does not return the end of {name}[{number}]; try again later")
            first, end = watermarks
            if first < end:
                ends[name, number] = (first, end)
    return ends


def _before_end(message: Message, ends: dict[Partition, tuple[int, int]]) -> Iterator[ReceivedMessage]:
    """Yield the message if it is before the end of its partition; removes finished partitions from ``ends``."""
    topic, number, offset, error = message.topic(), message.partition(), message.offset(), message.error()
    if topic is None or number is None or offset is None or (topic, number) not in ends:
        return
    partition = (topic, number)
    _, end = ends[partition]
    if error is not None:
        # The last offsets may be deleted messages or transaction markers.
        if error.code() == PARTITION_EOF:
            del ends[partition]
        return
    if offset < end:
        yield received(message, unprefixed(topic), number)
    if offset >= end - 1:
        ends.pop(partition, None)
