"""The consumer groups of this app: one per effect of a paid order, each with its own offsets."""

from __future__ import annotations

from kafka_bridge.registry import register_group

from .effects import data_platform, monitoring, notification, ranking

EFFECTS = (notification, data_platform, ranking, monitoring)


def register() -> None:
    """Register the groups; called once, when the app is ready."""
    for effect in EFFECTS:
        register_group(effect.group())
