"""What this app does with messages: the effects of a paid order, each a consumer group with offsets of its own."""

from __future__ import annotations

from kafka_bridge.registry import register_group

from .effects import data_platform, monitoring, notification, ranking

EFFECTS = (notification, data_platform, ranking, monitoring)


def register() -> None:
    """Called once, when the app is ready."""
    for effect in EFFECTS:
        register_group(effect.group())
