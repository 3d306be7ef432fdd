"""Commits of offsets."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from common.processes.lifecycle import first_line

from ..client import Consumer, KafkaException, TopicPartition
from .retrying_partitions import Partition

logger = logging.getLogger(__name__)


def commit_offsets(consumer: Consumer, next_offsets: Mapping[Partition, int], name: str) -> dict[Partition, int]:
    """Commit synchronously; returns what the broker has committed. ``name`` is the subscription's, for the log.

    A failure is only logged: handled messages are redelivered, and recognized.
    """
    try:
        committed = consumer.commit(
            offsets=[TopicPartition(*partition, offset) for partition, offset in next_offsets.items()],
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
