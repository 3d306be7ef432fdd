"""Three brokers, what they say about each other, and how they fail."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka import ConsumerGroupState, KafkaError, KafkaException, Message, Producer
from confluent_kafka.admin import AdminClient

from devstack import Addresses, Part, Stack, wait_until
from kafka_bridge.registry import prefixed

NUMBERS = (1, 2, 3)
# A start of three brokers on a busy machine is the longest of all that is waited for.
_MOMENT_SECONDS = 60.0
_ASK_SECONDS = 5.0


@dataclass(frozen=True)
class View:
    """What a broker knows of the cluster: who lives, who leads which partition, whether all replicas are in sync."""

    brokers: frozenset[int]
    leaders: dict[tuple[str, int], int]
    in_sync: bool


@dataclass(frozen=True)
class Group:
    """A consumer group: the broker that keeps its offsets, and how many members share the partitions."""

    coordinator: int
    sharing: int


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
            lambda: all(_is_whole(self._view([number])) for number in NUMBERS),
            _MOMENT_SECONDS,
            "the brokers do not find together again",
        )

    def when_fenced(self, number: int) -> None:
        """Wait until the others know nothing of a broker any more and lead all of its partitions."""
        others = [other for other in NUMBERS if other != number]

        def fenced() -> bool:
            views = [self._view([other]) for other in others]
            return all(
                view is not None and number not in view.brokers and number not in view.leaders.values()
                for view in views
            )

        wait_until(fenced, _MOMENT_SECONDS, f"broker {number} keeps what it leads")

    def leader(self, topic: str, partition: int) -> int:
        """The number of the broker that leads a partition; ``topic`` is without prefix."""
        view = self._view(NUMBERS)
        assert view is not None
        return view.leaders[prefixed(topic), partition]

    def coordinator(self, group_id: str) -> int:
        """The number of the broker that keeps the offsets of a group."""
        group = self._group(group_id)
        assert group is not None
        return group.coordinator

    def when_shared(self, group_id: str, members: int) -> None:
        """Wait until so many members of a group have each its share of the partitions."""

        def shared() -> bool:
            group = self._group(group_id)
            return group is not None and group.sharing == members

        wait_until(shared, _MOMENT_SECONDS, f"{members} members do not share the partitions")

    def assert_acknowledges_nothing(self, topic: str, seconds: float) -> None:
        """Offer the brokers a message for so long, which none of them may acknowledge."""
        reports: list[KafkaError | None] = []

        def on_delivery(error: KafkaError | None, message: Message) -> None:
            reports.append(error)

        producer = Producer({"bootstrap.servers": self.servers, "acks": "all"})
        producer.produce(prefixed(topic), value=b"{}", key=b"probe", on_delivery=on_delivery)
        waiting = producer.flush(seconds)
        producer.purge()
        assert (waiting, reports) == (1, []), "the message was acknowledged or refused"

    def assert_silent(self, number: int, seconds: float) -> None:
        """Ask a broker for so long, which must not answer."""
        assert self._view([number], seconds) is None, f"broker {number} answers"

    def _group(self, group_id: str) -> Group | None:
        """What the coordinator says of a group; None while there is no coordinator."""
        admin = AdminClient({"bootstrap.servers": self.servers})
        try:
            futures = admin.describe_consumer_groups([group_id], request_timeout=_ASK_SECONDS)
            described = futures[group_id].result()
        except KafkaException:
            return None
        stable = described.state == ConsumerGroupState.STABLE
        sharing = [member for member in described.members if stable and member.assignment.topic_partitions]
        return Group(described.coordinator.id, len(sharing))

    def _view(self, numbers: Collection[int], seconds: float = _ASK_SECONDS) -> View | None:
        """What one of some brokers knows; None if none of them answers."""
        servers = ",".join(f"127.0.0.1:{self.brokers[number].port}" for number in numbers)
        try:
            said = AdminClient({"bootstrap.servers": servers}).list_topics(timeout=seconds)
        except KafkaException:
            return None
        partitions = {
            (name, number): partition
            for name, topic in said.topics.items()
            for number, partition in topic.partitions.items()
        }
        return View(
            brokers=frozenset(said.brokers),
            leaders={place: partition.leader for place, partition in partitions.items()},
            in_sync=all(set(partition.isrs) == set(partition.replicas) for partition in partitions.values()),
        )


@contextmanager
def three_brokers(root: Path) -> Iterator[Cluster]:
    """Start three brokers with their files in ``root``, and stop them at the end."""
    elsewhere = {"DATABASE_URL": "elsewhere", "REDIS_URL": "elsewhere"}
    stack = Stack("cluster", brokers=len(NUMBERS), root=root, environ=elsewhere, report=print)
    with stack.used() as addresses:
        yield Cluster(stack, addresses)


def _is_whole(view: View | None) -> bool:
    return view is not None and view.in_sync and view.brokers == {*NUMBERS}
