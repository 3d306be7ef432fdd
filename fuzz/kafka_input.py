"""Hostile Kafka messages: randomly mutated valid messages, and garbage."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any
from uuid import UUID

from django.conf import settings

from .mutation import ODD_BYTES, ODD_TEXTS, encode, mutated_body, mutated_bytes, odd_value
from .world import World

Headers = tuple[tuple[bytes, bytes | None], ...]

_TYPES = tuple(settings.KAFKA_ROUTES)
_DECADE_MS = 315_360_000_000
_ODD_TYPES = (b"order.completed.v2", b"nonsense", b"", b"\xff", b"x" * 5000)
_ODD_NAMES = (b"\xff", b"\xc3\x28", b"", b"a\0b", "쿠폰".encode(), b"x" * 3000, b"x-original-topic", b"CE_ID")


@dataclass(frozen=True, slots=True)
class KafkaMessage:
    """A message to send. ``topic`` without the prefix; ``timestamp`` in ms, 0 for now."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp: int = 0


def hostile_message(random: Random, world: World) -> KafkaMessage:
    """Return a random message for a topic of the route table or its dead-letter topic."""
    event_type = random.choice(_TYPES)
    route = settings.KAFKA_ROUTES[event_type]
    body = event_body(event_type, random, world)
    topic = route.topic if random.random() < 0.9 else route.dead_letter_topic
    return KafkaMessage(topic, _key(random), _value(body, random), _headers(event_type, random), _timestamp(random))


def event_body(event_type: str, random: Random, world: World) -> dict[str, Any]:
    """Return a valid event body with new ids, of a user of hostile input."""
    user_id = world.any_user(random)
    coupon = random.choice(world.coupons)
    request = {
        "requestId": str(new_id(random)),
        "userId": user_id,
        "couponId": coupon.pk,
        "couponType": coupon.coupon_type,
        "requestedAt": "2026-01-01T00:00:00Z",
        "source": "API",
        "admission": random.choice(["queue", "gate", "reserve"]),
        "sequence": random.choice([None, 1]),
    }
    result = {
        "requestId": str(new_id(random)),
        "userId": user_id,
        "couponId": coupon.pk,
        "couponType": coupon.coupon_type,
        "status": "SUCCESS" if "succeeded" in event_type else "FAILED",
        "reason": None if "succeeded" in event_type else "SOLD_OUT",
        "userCouponId": random.randint(1, 10**6),
        "processedAt": "2026-01-01T00:00:00Z",
    }
    product = random.choice(world.products)
    order = {
        "orderId": random.randint(10**12, 10**13),
        "userId": user_id,
        "items": [{"productId": product.pk, "name": product.name, "quantity": 1, "unitPrice": 1000}],
        "totalAmount": 1000,
        "discountAmount": 0,
        "payAmount": 1000,
        "userCouponId": None,
        "paidAt": "2026-01-01T00:00:00Z",
    }
    if event_type.startswith("coupon."):
        return request if "requested" in event_type else result
    # Half of them now, so that they are counted in the same minute as valid ones.
    order["paidAt"] = random.choice([order["paidAt"], world.now()])
    return order if "completed" in event_type else {**order, "cancelledAt": order["paidAt"]}


def valid_headers(event_type: str, event_id: UUID) -> Headers:
    """Return the headers of an event as the service writes them."""
    return (
        (b"ce_id", str(event_id).encode()),
        (b"ce_type", event_type.encode()),
        (b"ce_source", b"/fuzz"),
        (b"ce_specversion", b"1.0"),
        (b"content-type", b"application/json"),
    )


def new_id(random: Random) -> UUID:
    return UUID(int=random.getrandbits(128), version=4)


def _value(body: dict[str, Any], random: Random) -> bytes | None:
    match random.randrange(10):
        case 0 | 1 | 2:
            return encode(body, random)
        case 3 | 4 | 5 | 6:
            return mutated_body(body, random)
        case 7:
            return mutated_bytes(encode(body, random), random)
        case 8:
            return random.choice([None, *ODD_BYTES, encode(odd_value(random), random)])
        case _:
            return random.randbytes(random.choice([1, 100, 50_000]))


def _headers(event_type: str, random: Random) -> Headers:
    headers: list[tuple[bytes, bytes | None]] = list(valid_headers(event_type, new_id(random)))
    if random.random() < 0.1:
        return ()
    for _ in range(random.choice([0, 0, 1, 2, 3])):
        index = random.randrange(len(headers)) if headers else 0
        match random.randrange(6):
            case 0 if headers:
                del headers[index]
            case 1 if headers:
                headers[index] = (headers[index][0], random.choice([None, *ODD_BYTES[:-1], b"x" * 5000]))
            case 2 if headers:
                headers.append((headers[index][0], random.choice(ODD_TEXTS).encode("utf-8", "surrogatepass")))
            case 3:
                headers.append((b"ce_type", random.choice(_ODD_TYPES)))
            case 4:
                headers.append((random.choice(_ODD_NAMES), random.choice([None, b"1", b"\xff"])))
            case _:
                headers.append((b"traceparent", random.choice([b"\xff", b"00-0-0-00", b"00-" + b"0" * 60])))
    return tuple(headers)


def _key(random: Random) -> bytes | None:
    return random.choice([None, b"", b"K", b"\xff\x00", b"k" * 2000, random.randbytes(4), random.randbytes(4)])


def _timestamp(random: Random) -> int:
    return random.choice([1, 2**40 - _DECADE_MS]) if random.random() < 0.05 else 0
