"""System checks of settings that only make sense together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register

_SAFE_REPLICATION = 3


@register(Tags.compatibility)
def topics_can_be_created(app_configs: Sequence[AppConfig] | None, **_options: Any) -> list[CheckMessage]:
    """A dead-letter topic that is also an event topic would feed its consumers their own failures."""
    events = {route.topic for route in settings.KAFKA_ROUTES.values()}
    return [
        Error(
            f"{event_type} sends its dead letters to the event topic {route.dead_letter_topic!r}.",
            hint="Name another deadLetterTopic in KAFKA_ROUTES.",
            id="couponsite.E001",
        )
        for event_type, route in settings.KAFKA_ROUTES.items()
        if route.dead_letter_topic in events
    ]


@register(Tags.security, deploy=True)
def several_brokers_mean_replication(app_configs: Sequence[AppConfig] | None, **_options: Any) -> list[CheckMessage]:
    """With three brokers and one replica, each broker that stops takes a third of the requests with it."""
    brokers = settings.KAFKA_BOOTSTRAP_SERVERS.count(",") + 1
    if brokers < _SAFE_REPLICATION:
        return []
    return [
        Warning(
            f"{event_type} has {replicas} replica(s) on {brokers} brokers.",
            hint="Set KAFKA_REPLICATION_FACTOR=3: then min.insync.replicas is 2 and one broker may be away.",
            id="couponsite.W001",
        )
        for event_type, route in settings.KAFKA_ROUTES.items()
        if (replicas := route.replicas or settings.KAFKA_REPLICATION_FACTOR) < _SAFE_REPLICATION
    ]
