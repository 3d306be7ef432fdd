"""Commits of offsets."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from common.processes.lifecycle import first_line

from ..client import Consumer, KafkaException, TopicPartition
from .retrying_partitions import Partition
from .topic_ids import TopicIds

logger = logging.getLogger(__name__)


def commit_offsets(
    consumer: Consumer, next_offsets: Mapping[Partition, int], topic_ids: TopicIds, name: str
) -> dict[Partition, int]:
    """Commit synchronously, with the ids of the topics; returns what the broker has committed.

    ``name`` is the subscription's, for the log.

    A failure is only logged: handled messages are redelivered, and recognized.
    """
    try:
        committed = consumer.commit(
            offsets=[
                TopicPartition(topic, number, offset, metadata=topic_ids.of(topic))
                for (topic, number), offset in next_offsets.items()
            ],
            asynchronous=False,
        )
    except KafkaException as error:
        positions = ", ".join(f"{topic}[{number}]" for topic, number in next_offsets)
        logger.warning("%s: offset of %s not committed: %s", name, positions, first_line(error))
        return {}
    succeeded: dict[Partition, int] = {}
    for item in committed or ():
        if item.error is not None:
            logger.warning("%s: offset of %s not committed: %s", name, item, item.error.str())
        else:
            succeeded[item.topic, item.partition] = item.offset
    return succeeded
