"""What the topics must show afterwards: everything that was promised, in order, and no offset ahead of its effects."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from tests.cluster.load import Span
from tests.support.kafka import header, read_to_end


@dataclass(frozen=True, slots=True)
class Record:
    """A message as it lies in a topic."""

    partition: int
    offset: int
    key: bytes
    event_id: UUID


@dataclass(frozen=True, slots=True)
class Offsets:
    """What a group had committed at some moment, by partition, and what was decided by then."""

    committed: Mapping[int, int]
    decided: Collection[UUID]


def read_history(topic: str) -> list[Record]:
    """Everything on a topic (named without prefix), by partition and offset."""
    records = []
    for message in read_to_end(topic):
        partition, offset = message.partition(), message.offset()
        assert partition is not None
        assert offset is not None
        records.append(Record(partition, offset, message.key() or b"", UUID(header(message, "ce_id"))))
    return sorted(records, key=lambda record: (record.partition, record.offset))


def first_copies(records: Sequence[Record]) -> dict[bytes, list[UUID]]:
    """The event ids of each key in the order of their first copies."""
    ids: dict[bytes, dict[UUID, None]] = defaultdict(dict)
    for record in records:
        ids[record.key].setdefault(record.event_id)
    return {key: list(unique) for key, unique in ids.items()}


def lost_events(records: Sequence[Record], written: Sequence[UUID]) -> list[str]:
    """Events of the outbox that are not on their topic, and messages that were never written."""
    published = {record.event_id for record in records}
    lost = [f"I1 event {event_id} is not on its topic" for event_id in written if event_id not in published]
    return lost + [f"I1 message {event_id} was never written" for event_id in published - set(written)]


def scattered_keys(records: Sequence[Record]) -> list[str]:
    """Keys that lie on several partitions, where nothing keeps their order."""
    partitions: dict[bytes, set[int]] = defaultdict(set)
    for record in records:
        partitions[record.key].add(record.partition)
    return [f"I4 key {key!r} is on partitions {found}" for key, found in partitions.items() if len(found) > 1]


def overtaken_requests(published: Sequence[UUID], spans: Mapping[UUID, Span]) -> list[str]:
    """Requests of one key that stand behind one which was sent only after they had been answered.

    Requests that were under way at the same time have no order. ``published`` are the first copies.
    """
    lines = []
    # Of those further behind, the one that was answered first: if any was overtaken, it was.
    behind: UUID | None = None
    for request_id in reversed(published):
        if behind is not None and spans[behind].answered < spans[request_id].asked:
            lines.append(f"I4 request {request_id} overtook {behind}, which had been answered before it was sent")
        if behind is None or spans[request_id].answered < spans[behind].answered:
            behind = request_id
    return lines


def displaced_results(published: Sequence[UUID], written: Sequence[UUID]) -> list[str]:
    """The first result of one coupon that stands on the topic before another that was written earlier.

    An issuer that decides holds the coupon's lock, so no two of them ran at once: the outbox's ids are in their order.
    ``published`` are the first copies, ``written`` the results of all coupons as the outbox has them.
    """
    concerned = set(published)
    for found, wanted in zip(published, (event_id for event_id in written if event_id in concerned), strict=True):
        if found != wanted:
            return [f"I4 result {found} overtook {wanted}, which was written before it"]
    return []


def undecided_before(offsets: Offsets, records: Sequence[Record]) -> list[str]:
    """Messages below a committed offset that were not decided."""
    return [
        f"I5 partition {record.partition} is committed up to {offsets.committed[record.partition]},"
        f" and request {record.event_id} at {record.offset} is not decided"
        for record in records
        if record.offset < offsets.committed.get(record.partition, 0) and record.event_id not in offsets.decided
    ]
