"""Three brokers, what they say about each other, and how they fail."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from confluent_kafka import ConsumerGroupState, KafkaError, KafkaException, Message, Producer
from confluent_kafka.admin import AdminClient, ClusterMetadata, ConsumerGroupDescription, PartitionMetadata

from devstack import Addresses, Part, Stack, wait_until
from kafka_bridge.registry import prefixed

NUMBERS = (1, 2, 3)
# A start of three brokers on a busy machine is the longest of all that is waited for.
_MOMENT_SECONDS = 60.0
_ASK_SECONDS = 5.0


class Cluster:
    """The brokers by number. Those that a test made fail stay so until it, or ``heal``, brings them back."""

    def __init__(self, stack: Stack, addresses: Addresses) -> None:
        self.servers = addresses.kafka_bootstrap_servers
        self.brokers: dict[int, Part] = {number: stack.part(f"kafka-{number}") for number in NUMBERS}

    def heal(self) -> None:
        """Bring back every broker that is down or frozen, and wait until every replica is in sync."""
        for part in self.brokers.values():
            part.start()
        self.when_whole()

    def when_whole(self) -> None:
        """Wait until every broker knows all of them, and every replica is in sync."""
        wait_until(
            lambda: all(_is_whole(self._ask([number])) for number in NUMBERS),
            _MOMENT_SECONDS,
            "the brokers do not find together again",
        )

    def when_fenced(self, number: int) -> None:
        """Wait until the others know nothing of a broker any more and lead all of its partitions."""
        others = [other for other in NUMBERS if other != number]

        def fenced() -> bool:
            said = [self._ask([other]) for other in others]
            return all(
                metadata is not None
                and number not in metadata.brokers
                and all(partition.leader in others for partition in _partitions(metadata))
                for metadata in said
            )

        wait_until(fenced, _MOMENT_SECONDS, f"broker {number} keeps what it leads")

    def leader(self, topic: str, partition: int) -> int:
        """The number of the broker that leads a partition; ``topic`` is without prefix."""
        metadata = self._ask(NUMBERS)
        assert metadata is not None
        return int(metadata.topics[prefixed(topic)].partitions[partition].leader)

    def coordinator(self, group_id: str) -> int:
        """The number of the broker that keeps the offsets of a group."""
        described = self._describe(group_id)
        assert described is not None
        return int(described.coordinator.id)

    def when_shared(self, group_id: str, members: int) -> None:
        """Wait until so many members of a group have each its share of the partitions."""

        def shared() -> bool:
            described = self._describe(group_id)
            if described is None or described.state != ConsumerGroupState.STABLE:
                return False
            return members == sum(bool(member.assignment.topic_partitions) for member in described.members)

        wait_until(shared, _MOMENT_SECONDS, f"{members} members do not share the partitions")

    def assert_acknowledges_nothing(self, topic: str, seconds: float) -> None:
        """Offer the brokers a message for so long, which none of them may acknowledge."""
        reports: list[KafkaError | None] = []

        def on_delivery(error: KafkaError | None, message: Message) -> None:
            reports.append(error)

        producer = Producer(
            {
                "bootstrap.servers": self.servers,
                "acks": "all",
                "message.timeout.ms": round(1000 * seconds),
            }
        )
        producer.produce(prefixed(topic), value=b"{}", key=b"probe", on_delivery=on_delivery)
        assert producer.flush(seconds + _ASK_SECONDS) == 0, "the message neither arrives nor times out"
        assert [error and error.code() for error in reports] == [KafkaError._MSG_TIMED_OUT]

    def assert_silent(self, number: int, seconds: float) -> None:
        """Ask a broker for so long, which must not answer."""
        assert self._ask([number], seconds) is None, f"broker {number} answers"

    def _describe(self, group_id: str) -> ConsumerGroupDescription | None:
        """What the group's coordinator says; None while there is none."""
        admin = AdminClient({"bootstrap.servers": self.servers})
        try:
            futures = admin.describe_consumer_groups([group_id], request_timeout=_ASK_SECONDS)
            described: ConsumerGroupDescription = futures[group_id].result()
        except KafkaException:
            return None
        return described

    def _ask(self, numbers: Collection[int], seconds: float = _ASK_SECONDS) -> ClusterMetadata | None:
        """What one of some brokers knows; None if none of them answers."""
        servers = ",".join(f"127.0.0.1:{self.brokers[number].port}" for number in numbers)
        try:
            return AdminClient({"bootstrap.servers": servers}).list_topics(timeout=seconds)
        except KafkaException:
            return None


def _is_whole(metadata: ClusterMetadata | None) -> bool:
    return (
        metadata is not None
        and set(metadata.brokers) == set(NUMBERS)
        and all(set(partition.isrs) == set(partition.replicas) for partition in _partitions(metadata))
    )


def _partitions(metadata: ClusterMetadata) -> Sequence[PartitionMetadata]:
    return [partition for topic in metadata.topics.values() for partition in topic.partitions.values()]
