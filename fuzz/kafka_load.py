"""Sends hostile messages and, between them, valid requests, which must be decided."""

from __future__ import annotations

import threading
import time
from collections import Counter
from random import Random
from typing import Any
from uuid import UUID

from confluent_kafka import KafkaException, Producer
from django.conf import settings

from coupons.messages import ISSUE_REQUESTED
from kafka_bridge.cloudevents import encode_body
from kafka_bridge.registry import prefixed

from .findings import Findings
from .kafka_input import event_body, hostile_message, new_id, valid_headers
from .raw_producer import RawProducer
from .world import World

_FLUSH_SECONDS = 60.0
_SHOWN = 500
# One of so many messages is valid, and one of so many is a transaction.
_VALID_EVERY = 3
_TRANSACTION_EVERY = 40


class KafkaLoad:
    """Sends ``per_second`` messages until the deadline, some of them in transactions if ``transactions``."""

    def __init__(self, world: World, seed: str, findings: Findings, *, per_second: int, transactions: bool) -> None:
        self.sent: Counter[str] = Counter()
        # Valid requests that the broker has acknowledged.
        self.accepted: set[UUID] = set()
        self._world = world
        self._seed = seed
        self._findings = findings
        self._pause = 1 / per_second
        servers = {"bootstrap.servers": settings.KAFKA_BOOTSTRAP_SERVERS}
        common = {**servers, "partitioner": "murmur2_random", "linger.ms": "5", "message.max.bytes": "1000000"}
        self._raw = RawProducer(common)
        self._producer = Producer(common)
        self._transactional = Producer({**servers, "transactional.id": prefixed("fuzz")}) if transactions else None

    def run(self, deadline: float, stopping: threading.Event) -> None:
        """Send until the deadline or ``stopping``, then wait for the acknowledgements."""
        if self._transactional is not None:
            self._transactional.init_transactions(_FLUSH_SECONDS)
        number = 0
        while time.monotonic() < deadline and not stopping.wait(self._pause):
            number += 1
            random = Random(f"{self._seed}:kafka:{number}")
            if number % _VALID_EVERY == 0:
                self._send_valid(random)
            elif self._transactional is not None and number % _TRANSACTION_EVERY == 1:
                self._send_in_transaction(self._transactional, random)
            else:
                self._send_hostile(number, random)
        self._raw.close()
        self._producer.flush(_FLUSH_SECONDS)

    def _send_hostile(self, number: int, random: Random) -> None:
        message = hostile_message(random, self._world)
        self._findings.sent(f"Kafka {number}: {message!r}"[:_SHOWN])
        is_queued = self._raw.produce(
            prefixed(message.topic), message.value, message.key, message.headers, message.timestamp
        )
        self.sent["hostile" if is_queued else "refused by the client"] += 1

    def _send_valid(self, random: Random) -> None:
        request_id, body = self._valid_request(random)

        def delivered(error: Any, _message: Any) -> None:
            if error is None:
                self.accepted.add(request_id)

        self._producer.produce(
            prefixed(settings.KAFKA_ROUTES[ISSUE_REQUESTED].topic),
            value=encode_body(body),
            key=random.randbytes(4),
            headers=_text_headers(request_id),
            on_delivery=delivered,
        )
        self._producer.poll(0)
        self.sent["valid"] += 1

    def _send_in_transaction(self, producer: Producer, random: Random) -> None:
        """Send valid requests in a transaction: committed, they must be decided; aborted, no consumer may read them."""
        topic = prefixed(settings.KAFKA_ROUTES[ISSUE_REQUESTED].topic)
        requests = [self._valid_request(random) for _ in range(random.randint(1, 3))]
        self._findings.sent(f"Kafka transaction on {topic}: {[str(request_id) for request_id, _ in requests]}")
        try:
            producer.begin_transaction()
            for request_id, body in requests:
                producer.produce(
                    topic, value=encode_body(body), key=random.randbytes(4), headers=_text_headers(request_id)
                )
            if random.random() < 0.5:
                producer.commit_transaction(_FLUSH_SECONDS)
                self.accepted.update(request_id for request_id, _ in requests)
            else:
                producer.abort_transaction(_FLUSH_SECONDS)
        except KafkaException as error:
            # Not a finding: the broker was too slow for the client's timeout.
            self.sent[f"transaction failed: {error.args[0].str()}"] += 1
            return
        self.sent["transactions"] += 1

    def _valid_request(self, random: Random) -> tuple[UUID, dict[str, Any]]:
        request_id = new_id(random)
        coupon = random.choice(self._world.plenty)
        body = event_body(ISSUE_REQUESTED, random, self._world)
        changes = {
            "requestId": str(request_id),
            "userId": self._world.new_user(),
            "couponId": coupon.pk,
            "couponType": coupon.coupon_type,
            "admission": "queue",
        }
        return request_id, {**body, **changes}


def _text_headers(request_id: UUID) -> list[tuple[str, str | bytes | None]]:
    return [(name.decode(), value) for name, value in valid_headers(ISSUE_REQUESTED, request_id)]
