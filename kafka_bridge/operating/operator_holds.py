"""What operators do with held messages: hold a topic or a key, release it, have held rows tried now.

Relays obey: they look at the holds once a second, and at once when one changes.
"""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import QuerySet

from ..models import HeldMessage, OutboxHold
from ..outbox.wake import look_at_held_rows
from ..registry import unprefixed
from ..routes import topics_of
from .audit import record_action

PERMISSION = "kafka_bridge.hold_messages"


class UnknownTopic(Exception):
    """The routes name no such topic, and no row of it is held: a hold of it would hold nothing."""


class TopicHeld(Exception):
    """An operator holds the whole topic, ``hold``: relays try none of its rows."""

    def __init__(self, hold: OutboxHold) -> None:
        super().__init__(f"topic {hold.topic} is held by {hold.actor}: {hold.reason}")
        self.hold = hold


def holds() -> QuerySet[OutboxHold]:
    """Select the holds in force, the oldest first."""
    return OutboxHold.objects.order_by("created_at", "pk")


def topic_names() -> list[str]:
    """Return the topics that can be held, without the prefix: those of the routes."""
    return sorted(topics_of(settings.KAFKA_ROUTES))


def hold_messages(*, topic: str, key: bytes | None, actor: str, reason: str) -> tuple[OutboxHold, bool]:
    """Hold the later rows of ``key`` of ``topic``, of the whole topic with None. Returns (hold, whether it is new).

    ``topic`` may have the prefix. A hold in force stays as it is. Raises UnknownTopic.
    """
    topic = _known(topic)
    with transaction.atomic():
        hold, is_new = OutboxHold.objects.get_or_create(
            topic=topic, key=key, defaults={"reason": reason, "actor": actor}
        )
        if is_new:
            record_action(
                actor=actor, action="hold.create", subject=describe(topic, key), reason=reason, after=_values(hold)
            )
            look_at_held_rows()
    return hold, is_new


def hold_release(*, hold_id: int, actor: str, reason: str) -> str | None:
    """Delete a hold: its rows are sent in their order. Returns what was held, None if it was released before."""
    with transaction.atomic():
        hold = OutboxHold.objects.select_for_update().filter(pk=hold_id).first()
        if hold is None:
            return None
        subject = describe(hold.topic, hold.key)
        record_action(actor=actor, action="hold.release", subject=subject, reason=reason, before=_values(hold))
        hold.delete()
        look_at_held_rows()
    return subject


def held_retry(*, topic: str, actor: str, reason: str) -> bool:
    """Have relays try the held rows of ``topic`` (without the prefix) at once; returns whether any is held.

    Rows of a key that an operator holds stay held. Raises TopicHeld.
    """
    with transaction.atomic():
        if not HeldMessage.objects.filter(topic=topic).exists():
            return False
        hold = OutboxHold.objects.filter(topic=topic, key=None).first()
        if hold is not None:
            raise TopicHeld(hold)
        record_action(actor=actor, action="hold.retry", subject=describe(topic, None), reason=reason)
        look_at_held_rows()
    return True


def describe(topic: str, key: bytes | memoryview | None) -> str:
    """Return the name of what is held: ``topic x``, or ``key 4711 of topic x``; a key that is no text in hex."""
    if key is None:
        return f"topic {topic}"
    return f"key {key_text(bytes(key))} of topic {topic}"


def key_text(key: bytes) -> str:
    """Return a key as text, as ``hex 00ff`` if it is not printable UTF-8."""
    if not key:
        return "(empty)"
    try:
        text = key.decode()
    except UnicodeDecodeError:
        text = "\0"
    return text if text.isprintable() else f"hex {key.hex()}"


def _known(topic: str) -> str:
    for name in (topic, unprefixed(topic)):
        if name in topic_names() or HeldMessage.objects.filter(topic=name).exists():
            return name
    raise UnknownTopic(topic)


def _values(hold: OutboxHold) -> dict[str, Any]:
    return {
        "topic": hold.topic,
        "key": None if hold.key is None else key_text(bytes(hold.key)),
        "reason": hold.reason,
        "actor": hold.actor,
    }
