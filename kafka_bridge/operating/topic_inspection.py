"""What the brokers say of our topics, read only: for checks that must change nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from common.processes.outages import ServiceUnavailable

from ..client import (
    KafkaError,
    KafkaException,
    TopicMetadata,
    complaints_of,
    make_admin,
    topic_configs,
    wanted_topics,
)
from ..routes import Route


class TopicInspection(NamedTuple):
    """``brokers``: the number that is there. ``missing``: topics that do not exist. A line per ``complaints``."""

    brokers: int
    missing: list[str]
    complaints: list[str]


def inspect_topics(routes: Mapping[str, Route], *, seconds: float) -> TopicInspection:
    """Compare the topics with ``routes`` in two requests of at most ``seconds`` each; changes nothing.

    Raises ServiceUnavailable if Kafka does not answer in time.
    """
    wanted = wanted_topics(routes)
    # Without this limit a request for the metadata goes on behind the timeout of its caller.
    admin = make_admin({"socket.timeout.ms": int(seconds * 1000)})
    try:
        metadata = admin.list_topics(timeout=seconds)
    except KafkaException as error:
        raise ServiceUnavailable(f"Kafka does not list its topics: {error.args[0].str()}") from error
    existing = {name: metadata.topics[name] for name in wanted if name in metadata.topics}
    configs = topic_configs(existing, timeout=seconds)
    complaints = [
        complaint
        for name, config in configs.items()
        for complaint in (*complaints_of(wanted[name], existing[name], config), *_unwritable(existing[name], config))
    ]
    return TopicInspection(len(metadata.brokers), sorted(wanted.keys() - existing.keys()), sorted(complaints))


def _unwritable(topic: TopicMetadata, config: dict[str, str] | KafkaError) -> Iterator[str]:
    """Yield the partitions that cannot be written now; the least of in-sync replicas is a setting of the topic."""
    least = 0 if isinstance(config, KafkaError) else int(config.get("min.insync.replicas") or 0)
    for partition in topic.partitions.values():
        if partition.leader < 0:
            yield f"{topic.topic}[{partition.id}] has no leader: bring its brokers back"
        elif len(partition.isrs) < least:
            yield (
                f"{topic.topic}[{partition.id}] has {len(partition.isrs)} in-sync replicas, needs {least}: bring"
                " its brokers back"
            )
