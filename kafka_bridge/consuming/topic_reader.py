"""What lies on topics from their beginning: read apart from all consumer groups, moving nobody's offsets."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator

from common.processes.lifecycle import StopFlag, first_line
from common.processes.outages import ServiceUnavailable

from ..client import PARTITION_EOF, Consumer, KafkaException, Message, TopicPartition, make_consumer
from ..registry import ReceivedMessage, prefixed
from .received import received

_ANSWER_SECONDS = 10.0
_SILENCE_SECONDS = 30.0
_CHUNK = 1000

Partition = tuple[str, int]


def read_history(topics: Collection[str], stop: StopFlag) -> Iterator[ReceivedMessage]:
    """All messages of ``topics`` (without the prefix) up to where they ended when the first was asked for.

    They come in order per partition. Ends early when told to stop. Raises ServiceUnavailable if Kafka does not answer,
    or a topic is not there.
    """
    consumer = make_consumer(prefixed("history"))
    try:
        ends = _ends(consumer, topics)
        consumer.assign([TopicPartition(*partition, first) for partition, (first, _) in ends.items()])
        last_heard = time.monotonic()
        while ends and not stop:
            messages = consumer.consume(_CHUNK, timeout=0.5)
            if messages:
                last_heard = time.monotonic()
            elif time.monotonic() - last_heard > _SILENCE_SECONDS:
                raise ServiceUnavailable(f"Kafka sends nothing more of {next(iter(ends))[0]}; try again later")
            for message in messages:
                yield from _within(message, ends)
    except KafkaException as error:
        raise ServiceUnavailable(f"Kafka does not tell what lies on the topics: {first_line(error)}") from error
    finally:
        consumer.close()


def _ends(consumer: Consumer, topics: Collection[str]) -> dict[Partition, tuple[int, int]]:
    """Of each partition that is not empty the first offset, and the one after the last."""
    known = consumer.list_topics(timeout=_ANSWER_SECONDS).topics
    ends = {}
    for name in sorted({prefixed(topic) for topic in topics}):
        if name not in known:
            raise ServiceUnavailable(f"there is no topic {name}: run create_topics, or mend KAFKA_ROUTES")
        for number in known[name].partitions:
            watermarks = consumer.get_watermark_offsets(TopicPartition(name, number), timeout=_ANSWER_SECONDS)
            if watermarks is None:
                raise ServiceUnavailable(f"Kafka does not tell where {name}[{number}] ends; try again later")
            first, end = watermarks
            if first < end:
                ends[name, number] = (first, end)
    return ends


def _within(message: Message, ends: dict[Partition, tuple[int, int]]) -> Iterator[ReceivedMessage]:
    """The message, if it lies before the end of its partition; takes partitions that are through out of ``ends``."""
    topic, number, offset, error = message.topic(), message.partition(), message.offset(), message.error()
    if topic is None or number is None or offset is None or (topic, number) not in ends:
        return
    partition = (topic, number)
    _, end = ends[partition]
    if error is not None:
        # The last messages may be gone, or be marks that are no messages.
        if error.code() == PARTITION_EOF:
            del ends[partition]
        return
    if offset < end:
        yield received(message, topic, number)
    if offset >= end - 1:
        ends.pop(partition, None)
