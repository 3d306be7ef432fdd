"""Messages hold what strangers sent: it is shown, and it does nothing."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest
from django.test import Client

from kafka_bridge.cloudevents import encode_headers
from kafka_bridge.message_admin import readable
from kafka_bridge.models import DeadLetter, OutboxMessage
from tests.admin.pages import html_of, rows_of

OUTBOX = "/admin/kafka_bridge/outboxmessage/"
DEAD_LETTERS = "/admin/kafka_bridge/deadletter/"
SCRIPT = "<script>alert(1)</script>"


def outbox_message(**fields: Any) -> OutboxMessage:
    defaults: dict[str, Any] = {
        "event_id": uuid4(), "event_type": "order.completed.v1", "topic": "order-completed", "key": b"7", "shard": 0,
        "payload": b'{"orderId":7}',
    }  # fmt: skip
    return OutboxMessage.objects.create(**defaults | fields)


def dead_letter(**fields: Any) -> DeadLetter:
    defaults: dict[str, Any] = {
        "consumer_group": "issue", "topic": "coupon-issue-request", "partition": 1, "offset": 2,
        "message_timestamp": 3, "event_type": "coupon.issue.requested.v1", "event_id": uuid4(), "key": b"K",
        "payload": b"{", "headers": b"[]", "error_class": "PoisonMessage", "error_message": "not JSON",
    }  # fmt: skip
    return DeadLetter.objects.create(**defaults | fields)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (None, "null"),
        (b"", ""),
        ('{"name": "쿠폰"}\n'.encode(), '{"name": "쿠폰"}\n'),
        (b"\xff\xfe", "hex fffe"),
        (b"a\0b", "hex 610062"),
        (b"\x1b[31m", "hex 1b5b33316d"),
        ("쿠".encode()[:2], "hex ecbf"),
        (memoryview(b"view"), "view"),
    ],
)
def test_bytes_are_shown_as_text_or_in_hex(raw: bytes | None, text: str) -> None:
    assert readable(raw) == text


def test_a_cut_text_ends_with_its_last_whole_letter() -> None:
    assert readable("쿠폰".encode()[:4], cut=True) == "쿠"


@pytest.mark.parametrize("as_whom", ["superuser", "viewer"])
def test_markup_in_a_message_is_text(as_whom: str, request: pytest.FixtureRequest) -> None:
    client: Client = request.getfixturevalue(as_whom)
    raw = SCRIPT.encode()
    headers = encode_headers(((SCRIPT, raw),))
    sent = outbox_message(key=raw, payload=raw, headers=headers, event_type=SCRIPT, topic=SCRIPT)
    dead = dead_letter(
        key=raw, payload=raw, headers=headers, event_type=SCRIPT, topic=SCRIPT, error_class=SCRIPT, error_message=SCRIPT
    )
    for path in (OUTBOX, f"{OUTBOX}{sent.pk}/change/", DEAD_LETTERS, f"{DEAD_LETTERS}{dead.pk}/change/"):
        page = html_of(client.get(path))
        assert SCRIPT not in page
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_markup_in_a_search_is_text(superuser: Client) -> None:
    for path in (OUTBOX, DEAD_LETTERS, "/admin/coupons/coupon/"):
        assert SCRIPT not in html_of(superuser.get(path, {"q": SCRIPT}))


def test_an_event_shows_the_headers_that_the_relay_will_send(superuser: Client) -> None:
    event_id = UUID("01890000-0000-7000-8000-000000000001")
    message = outbox_message(event_id=event_id, traceparent="00-aa-bb-01")
    page = html_of(superuser.get(f"{OUTBOX}{message.pk}/change/"))
    for line in (f"ce_id: {event_id}", "ce_type: order.completed.v1", "ce_source: /coupon-service", "00-aa-bb-01"):
        assert line in page


def test_a_dead_letter_shows_its_own_headers_and_bytes(superuser: Client) -> None:
    headers = encode_headers((("x-original-topic", b"t1"), ("x-empty", None), ("x-bytes", b"\xff\x00")))
    letter = dead_letter(headers=headers, payload=b"\xff" * 3, key=None)
    page = html_of(superuser.get(f"{DEAD_LETTERS}{letter.pk}/change/"))
    for line in ("x-original-topic: t1", "x-empty: null", "x-bytes: hex ff00", "hex ffffff", "not JSON"):
        assert line in page


def test_a_list_reads_and_shows_only_the_beginning_of_a_payload(superuser: Client) -> None:
    outbox_message(payload=b"x" * 100_000)
    dead_letter(payload="쿠".encode() * 30_000)
    for path, shown in ((OUTBOX, "x" * 80 + "…"), (DEAD_LETTERS, "쿠" * 26 + "…")):
        response = superuser.get(path)
        assert shown in html_of(response)
        assert len(response.content) < 100_000
        (row,) = rows_of(response)
        assert {"payload", "headers"} <= row.get_deferred_fields()


def test_the_outbox_can_be_narrowed_to_what_waits_for_the_relay(superuser: Client) -> None:
    waiting = outbox_message()
    outbox_message(published_at="2026-01-01T00:00:00Z")
    assert rows_of(superuser.get(OUTBOX, {"published": "no"})) == [waiting]


def test_dead_letters_can_be_narrowed_to_a_consumer_group(superuser: Client) -> None:
    letter = dead_letter(consumer_group="ranking")
    dead_letter(consumer_group="issue")
    assert rows_of(superuser.get(DEAD_LETTERS, {"group": "ranking"})) == [letter]
